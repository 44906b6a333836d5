"""``fitnet``, ``at``, ``rkd`` and ``reviewkd``: distillation of stage maps and pooled features."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from classification.data import Batch
from classification.distillers.base import Distiller, NetworkPair, last_stages, register_distiller
from classification.models import ModelOutput, before_relu
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import (
    ReviewKDFusion,
    at_loss,
    fitnet_loss,
    hcl_loss,
    pool_to_common_size,
    rkd_angle_loss,
    rkd_distance_loss,
)
from kd_det.losses.review_fusion import SafeBatchNorm2d


@register_distiller("fitnet")
class FitNet(Distiller):
    """``loss_fitnet``: ``fitnet_loss`` (Romero et al. 2015) between stage FITNET.STAGE of both networks.

    The regressor is a 1 x 1 convolution to the teacher's channels and a BatchNorm. Without the BatchNorm, a loss of
    weight 100 diverges at the usual learning rates. Maps of different sizes are average-pooled to the smaller one.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "FITNET.WEIGHT")
        self.stage = cfg.FITNET.STAGE
        given = _channels(self.stage, "student", pair.student_out)
        wanted = _channels(self.stage, "teacher", pair.teacher_out)
        self.regressor = nn.Sequential(nn.Conv2d(given, wanted, 1, bias=False), SafeBatchNorm2d(wanted))

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        student, teacher = pool_to_common_size(student_out.stages[self.stage], teacher_out.stages[self.stage])
        return {"loss_fitnet": self.weight * fitnet_loss([self.regressor(student)], [teacher])}


def _channels(number: int, side: str, out: ModelOutput) -> int:
    if not 0 <= number < len(out.stages):
        raise SetupError(f"FITNET.STAGE {number}: the {side} has the stages 0 to {len(out.stages) - 1}. Choose one.")
    return out.stages[number].shape[1]


@register_distiller("at")
class AT(Distiller):
    """``loss_at``: ``at_loss`` (Zagoruyko and Komodakis 2017) on the last AT.STAGES stage maps."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.count = last_stages(cfg, pair, "AT.STAGES")
        self.weight = checked(cfg, "AT.WEIGHT")
        self.power = checked(cfg, "AT.POWER")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        ours, theirs = (out.stages[-self.count :] for out in (student_out, teacher_out))
        return {"loss_at": self.weight * at_loss(ours, theirs, power=self.power)}


@register_distiller("rkd")
class RKD(Distiller):
    """``loss_rkd_distance`` and ``loss_rkd_angle``: ``rkd_distance_loss`` and ``rkd_angle_loss`` (Park et al. 2019).

    They compare the pooled features.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.distance_weight = checked(cfg, "RKD.DISTANCE_WEIGHT")
        self.angle_weight = checked(cfg, "RKD.ANGLE_WEIGHT")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        s, t = student_out.pooled, teacher_out.pooled
        return {
            "loss_rkd_distance": self.distance_weight * rkd_distance_loss(s, t),
            "loss_rkd_angle": self.angle_weight * rkd_angle_loss(s, t),
        }


# The most channels of the fusion where REVIEWKD.MID_CHANNELS is 0.
MOST_CHANNELS = 512


@register_distiller("reviewkd")
class ReviewKD(Distiller):
    """``loss_reviewkd``: ``hcl_loss`` between the student's levels after ``ReviewKDFusion`` and the teacher's.

    Chen et al. 2021. The levels are the last REVIEWKD.STAGES stage maps, the teacher's before their last ReLU, and the
    pooled feature as a 1 x 1 map. The student's maps are after that ReLU, as on CIFAR-100, or before it
    (REVIEWKD.PREACTIVATION), as on ImageNet. Where a fused map and the teacher's have different sizes, adaptive average
    pooling resizes the fused map; it repeats values where it enlarges by a whole factor.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.count = last_stages(cfg, pair, "REVIEWKD.STAGES")
        self.weight = checked(cfg, "REVIEWKD.WEIGHT")
        self.preactivation = cfg.REVIEWKD.PREACTIVATION
        levels = self._student_levels(pair.student_out), self._teacher_levels(pair.teacher_out)
        given, wanted = ([level.shape[1] for level in side] for side in levels)
        mid_channels = checked(cfg, "REVIEWKD.MID_CHANNELS") or min(given[-1], MOST_CHANNELS)
        self.fusion = ReviewKDFusion(given, wanted, mid_channels)

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        theirs = self._teacher_levels(teacher_out)
        fused = self.fusion(self._student_levels(student_out))
        ours = [_resized(level, wanted) for level, wanted in zip(fused, theirs, strict=True)]
        return {"loss_reviewkd": self.weight * hcl_loss(ours, theirs)}

    def _student_levels(self, out: ModelOutput) -> list[Tensor]:
        maps = before_relu(out) if self.preactivation else out.stages
        return [*maps[-self.count :], out.pooled[:, :, None, None]]

    def _teacher_levels(self, out: ModelOutput) -> list[Tensor]:
        return [*before_relu(out)[-self.count :], out.pooled[:, :, None, None]]


def _resized(level: Tensor, wanted: Tensor) -> Tensor:
    height, width = wanted.shape[2:]
    return level if level.shape[2:] == wanted.shape[2:] else F.adaptive_avg_pool2d(level, (height, width))
