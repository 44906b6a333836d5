"""``kd``: classical knowledge distillation."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data.batch import Batch
from classification.distillers.base import Pair, register_distiller
from classification.distillers.logits import LogitDistiller
from classification.models.outputs import ModelOutput
from classification.schema import checked
from kd_det.losses import kd_loss


@register_distiller("kd")
class KD(LogitDistiller):
    """``loss_kd``: ``kd_loss`` (Hinton et al. 2015)."""

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "KD.WEIGHT")
        self.settings = self.read_settings(cfg)

    @staticmethod
    def read_settings(cfg: CfgNode) -> dict[str, float]:
        """What ``kd_loss`` takes beside the logits."""
        return {"temperature": checked(cfg, "KD.TEMPERATURE")}

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = kd_loss(self.logits(student_out), self.logits(teacher_out), **self.settings)
        return {"loss_kd": self.weight * loss}
