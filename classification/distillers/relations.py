"""``sp``, ``nst``, ``pkt`` and ``kdsvd``: relations between samples, channels and levels."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data import Batch
from classification.distillers.base import Distiller, NetworkPair, check_stages, register_distiller
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import kdsvd_loss, nst_loss, pkt_loss, sp_loss


@register_distiller("sp")
class SP(Distiller):
    """``loss_sp``: ``sp_loss`` (Tung and Mori 2019) on the last stage's map."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "SP.WEIGHT")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_sp": self.weight * sp_loss(student_out.stages[-1:], teacher_out.stages[-1:])}


@register_distiller("nst")
class NST(Distiller):
    """``loss_nst``: ``nst_loss`` (Huang and Wang 2017) on all stage maps."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        check_stages(cfg, pair)
        self.weight = checked(cfg, "NST.WEIGHT")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_nst": self.weight * nst_loss(student_out.stages, teacher_out.stages)}


@register_distiller("pkt")
class PKT(Distiller):
    """``loss_pkt``: ``pkt_loss`` (Passalis and Tefas 2018) on the pooled features."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "PKT.WEIGHT")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_pkt": self.weight * pkt_loss(student_out.pooled, teacher_out.pooled)}


@register_distiller("kdsvd")
class KDSVD(Distiller):
    """``loss_kdsvd``: ``kdsvd_loss`` (Lee et al. 2018) on all stage maps, whose channels must be the teacher's."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        check_stages(cfg, pair)
        self.weight, self.k = checked(cfg, "KDSVD.WEIGHT"), checked(cfg, "KDSVD.K")
        ours, theirs = ([stage.shape[1] for stage in out.stages] for out in (pair.student_out, pair.teacher_out))
        if ours != theirs or len(ours) < 2:
            raise SetupError(
                f"DISTILLER {cfg.DISTILLER!r} needs two stages or more with equal channels, but STUDENT.NAME "
                f"{cfg.STUDENT.NAME!r} has {ours} and TEACHER.NAME {cfg.TEACHER.NAME!r} has {theirs}. Take networks of "
                "one width, or another method on relations: 'sp', 'nst', 'pkt'."
            )
        shapes = [stage.shape for stage in pair.teacher_out.stages]
        most = min(min(channels, height * width) for _, channels, height, width in shapes)
        if self.k > most:
            raise SetupError(f"KDSVD.K {self.k}: a map of TEACHER.NAME {cfg.TEACHER.NAME!r} has {most}; take fewer.")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_kdsvd": self.weight * kdsvd_loss(student_out.stages, teacher_out.stages, self.k)}
