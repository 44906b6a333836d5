"""``sp``, ``nst``, ``pkt``, ``kdsvd`` and ``crd``: relations between samples, channels and levels."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data import Batch
from classification.distillers.base import Distiller, NetworkPair, check_stages, register_distiller
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import CRDLoss, kdsvd_loss, nst_loss, pkt_loss, sp_loss


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


@register_distiller("crd")
class CRD(Distiller):
    """``loss_crd``: ``CRDLoss`` (Tian et al. 2020) on the pooled features, with negatives of other classes.

    The memories are part of the training state, so that ``--resume`` restores them.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "CRD.WEIGHT")
        if pair.train_samples < 2 or (pair.labels is not None and len(pair.labels.unique()) < 2):
            raise SetupError("DISTILLER 'crd': it needs training samples of two classes or more.")
        self.loss = CRDLoss(
            pair.student_out.pooled.shape[1],
            pair.teacher_out.pooled.shape[1],
            pair.train_samples,
            feature_dim=checked(cfg, "CRD.FEATURE_DIM"),
            negatives=checked(cfg, "CRD.NEGATIVES"),
            temperature=checked(cfg, "CRD.TEMPERATURE"),
            momentum=checked(cfg, "CRD.MOMENTUM"),
            labels=None if pair.labels is None else pair.labels.cpu(),
            seed=cfg.SEED,
        )

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_crd": self.weight * self.loss(student_out.pooled, teacher_out.pooled, batch.indices)}
