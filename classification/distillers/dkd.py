"""``dkd``: decoupled knowledge distillation."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data.batch import Batch
from classification.distillers.base import Pair, register_distiller
from classification.distillers.logits import LogitDistiller
from classification.models.outputs import ModelOutput
from classification.schema import checked
from kd_det.losses import dkd_loss


@register_distiller("dkd")
class DKD(LogitDistiller):
    """``loss_dkd``: ``dkd_loss`` (Zhao et al. 2022)."""

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "DKD.WEIGHT")
        self.settings = self.read_settings(cfg)

    @staticmethod
    def read_settings(cfg: CfgNode) -> dict[str, float]:
        """What ``dkd_loss`` takes beside logits and labels."""
        return {
            "alpha": checked(cfg, "DKD.ALPHA"),
            "beta": checked(cfg, "DKD.BETA"),
            "temperature": checked(cfg, "DKD.TEMPERATURE"),
        }

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = dkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_dkd": self.weight * loss}
