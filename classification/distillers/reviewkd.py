"""``reviewkd``: knowledge review of all stage maps and the pooled feature."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from classification.data.batch import Batch
from classification.distillers.base import Distiller, Pair, register_distiller
from classification.distillers.stages import check_stages
from classification.models.outputs import ModelOutput
from classification.schema import checked
from kd_det.losses import ReviewKDFusion, hcl_loss

# Of the channels in which the levels are mixed, where REVIEWKD.MID_CHANNELS leaves them to the student.
MOST_CHANNELS = 512


@register_distiller("reviewkd")
class ReviewKD(Distiller):
    """``loss_reviewkd``: ``hcl_loss`` between the student's levels after ``ReviewKDFusion`` and the teacher's.

    Chen et al. 2021, in its CIFAR setting: the levels are the stage maps, after their activation on both sides, and the
    pooled feature as a 1 x 1 map. A fused map of another size than the teacher's is brought to it by adaptive average
    pooling, which repeats values where it enlarges by a whole factor.
    """

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        check_stages(cfg, pair)
        self.weight = checked(cfg, "REVIEWKD.WEIGHT")
        given, wanted = ([level.shape[1] for level in _levels(out)] for out in (pair.student_out, pair.teacher_out))
        mid_channels = checked(cfg, "REVIEWKD.MID_CHANNELS") or min(given[-1], MOST_CHANNELS)
        self.fusion = ReviewKDFusion(given, wanted, mid_channels)

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        theirs = _levels(teacher_out)
        fused = self.fusion(_levels(student_out))
        ours = [_resized(level, wanted.shape[2:]) for level, wanted in zip(fused, theirs, strict=True)]
        return {"loss_reviewkd": self.weight * hcl_loss(ours, theirs)}


def _levels(out: ModelOutput) -> list[Tensor]:
    return [*out.stages, out.pooled[:, :, None, None]]


def _resized(level: Tensor, size: tuple[int, ...]) -> Tensor:
    return level if level.shape[2:] == size else F.adaptive_avg_pool2d(level, size)
