"""``dkd_coupled``: decoupled knowledge distillation with plain KD's weight of the other classes."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data.batch import Batch
from classification.distillers.base import Pair, register_distiller
from classification.distillers.dkd import DKD
from classification.models.outputs import ModelOutput
from kd_det.losses import coupled_dkd_loss


@register_distiller("dkd_coupled")
class CoupledDKD(DKD):
    """``loss_dkd_coupled``: ``coupled_dkd_loss`` (Zhao et al. 2022, the ablation of β).

    NCKD is weighed by 1 − p_y instead of DKD.BETA, which counts for nothing. With DKD.ALPHA 1 it equals ``kd`` at
    DKD.TEMPERATURE.
    """

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        del self.settings["beta"]

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = coupled_dkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_dkd_coupled": self.weight * loss}
