"""``nkd``: normalised knowledge distillation."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data.batch import Batch
from classification.distillers.base import Pair, register_distiller
from classification.distillers.logits import LogitDistiller
from classification.models.outputs import ModelOutput
from classification.schema import checked
from kd_det.losses import nkd_loss


@register_distiller("nkd")
class NKD(LogitDistiller):
    """``loss_nkd``: ``nkd_loss`` (Yang et al. 2023)."""

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "NKD.WEIGHT")
        self.settings = self.read_settings(cfg)

    @staticmethod
    def read_settings(cfg: CfgNode) -> dict[str, float]:
        """What ``nkd_loss`` takes beside logits and labels."""
        return {
            "gamma": checked(cfg, "NKD.GAMMA"),
            "temperature": checked(cfg, "NKD.TEMPERATURE"),
        }

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = nkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_nkd": self.weight * loss}
