"""``at``: attention transfer."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data.batch import Batch
from classification.distillers.base import Distiller, Pair, register_distiller
from classification.distillers.stages import check_stages
from classification.models.outputs import ModelOutput
from classification.schema import checked
from kd_det.losses import at_loss


@register_distiller("at")
class AT(Distiller):
    """``loss_at``: ``at_loss`` (Zagoruyko and Komodakis 2017) on all stage maps."""

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        check_stages(cfg, pair)
        self.weight = checked(cfg, "AT.WEIGHT")
        self.power = checked(cfg, "AT.POWER")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_at": self.weight * at_loss(student_out.stages, teacher_out.stages, power=self.power)}
