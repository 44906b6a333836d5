"""``hcd``: heterogeneous complementary distillation."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data import Batch
from classification.distillers.base import LogitDistiller, NetworkPair, register_distiller
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import HCDLoss


@register_distiller("hcd")
class HCD(LogitDistiller):
    """``loss_hcd_kd``, ``loss_hcd_fused_kd``, ``loss_hcd_fused_ce``, ``loss_hcd_orthogonality``: ``HCDLoss``.

    Xu et al. 2025. Student and teacher may be of any two families: the method uses the map of one of the student's
    stages and the teacher's pooled feature.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        node = cfg.HCD
        self.weight = checked(cfg, "HCD.WEIGHT")
        self.stage = node.STAGE
        self.loss = HCDLoss(
            _student_channels(node.STAGE, pair.student_out),
            _teacher_channels(cfg.TEACHER.NAME, pair.teacher_out),
            pair.student_out.logits.shape[1],
            n=checked(cfg, "HCD.N"),
            projector_channels=checked(cfg, "HCD.PROJECTOR_CHANNELS"),
            temperature=checked(cfg, "HCD.TEMPERATURE"),
            ce_weight=checked(cfg, "HCD.CE_WEIGHT"),
            orthogonal_weight=checked(cfg, "HCD.ORTHOGONAL_WEIGHT"),
        )

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        s, t = self.logits(student_out), self.logits(teacher_out)
        terms = self.loss(s, t, batch.labels, student_out.stages[self.stage], teacher_out.pooled)
        return {f"loss_hcd_{name}": self.weight * value for name, value in terms.items()}


def _student_channels(stage: int, student_out: ModelOutput) -> int:
    last = len(student_out.stages) - 1
    if not -1 <= stage <= last:
        raise SetupError(f"HCD.STAGE {stage}: the student has the stages 0 to {last}. Choose one, or -1 for the last.")
    return student_out.stages[stage].shape[1]


def _teacher_channels(name: str, teacher_out: ModelOutput) -> int:
    pooled = teacher_out.pooled
    if pooled is None or pooled.ndim != 2:
        raise SetupError(
            f"TEACHER.NAME {name!r}: HCD needs the teacher's pooled feature, which this model lacks. Take another "
            "teacher, or another DISTILLER."
        )
    return pooled.shape[1]
