"""``dkd_nckd``: the other classes' part alone of decoupled knowledge distillation."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data.batch import Batch
from classification.distillers.base import Pair, register_distiller
from classification.distillers.dkd import DKD
from classification.models.outputs import ModelOutput
from kd_det.losses import dkd_loss


@register_distiller("dkd_nckd")
class NCKD(DKD):
    """``loss_dkd_nckd``: ``dkd_loss`` with 0 for DKD.ALPHA (Zhao et al. 2022, the ablation of the two parts)."""

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        self.settings["alpha"] = 0.0

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = dkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_dkd_nckd": self.weight * loss}
