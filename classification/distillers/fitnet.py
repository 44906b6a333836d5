"""``fitnet``: regression of one of the teacher's stage maps."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.data.batch import Batch
from classification.distillers.base import Distiller, Pair, register_distiller
from classification.models.outputs import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import fitnet_loss, pool_to_common_size
from kd_det.losses.review_fusion import SafeBatchNorm2d


@register_distiller("fitnet")
class FitNet(Distiller):
    """``loss_fitnet``: ``fitnet_loss`` (Romero et al. 2015) between stage FITNET.STAGE of both networks.

    The regressor is a 1 x 1 convolution to the teacher's channels and a BatchNorm, without which a loss of weight 100
    diverges at the usual learning rates. Where the maps' sizes differ, both are first average-pooled to the smaller.
    """

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
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
