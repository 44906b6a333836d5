"""``rkd``: relational knowledge distillation."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data.batch import Batch
from classification.distillers.base import Distiller, Pair, register_distiller
from classification.models.outputs import ModelOutput
from classification.schema import checked
from kd_det.losses import rkd_angle_loss, rkd_distance_loss


@register_distiller("rkd")
class RKD(Distiller):
    """``loss_rkd_distance`` and ``loss_rkd_angle`` (Park et al. 2019) on the pooled features."""

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        self.distance_weight = checked(cfg, "RKD.DISTANCE_WEIGHT")
        self.angle_weight = checked(cfg, "RKD.ANGLE_WEIGHT")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        s, t = student_out.pooled, teacher_out.pooled
        return {
            "loss_rkd_distance": self.distance_weight * rkd_distance_loss(s, t),
            "loss_rkd_angle": self.angle_weight * rkd_angle_loss(s, t),
        }
