# my_distillers.py
from torch.nn import functional as F

from classification.distillers import Distiller, register_distiller
from kd_det.common.errors import non_negative


@register_distiller("mine")
class Mine(Distiller):
    """``loss_mine``: mean squared error between the logits of student and teacher."""

    keys = {"WEIGHT": 0.1}  # noqa: RUF012
    checks = {"MINE.WEIGHT": non_negative}  # noqa: RUF012

    def __init__(self, cfg, pair):
        super().__init__(cfg, pair)
        self.weight = cfg.MINE.WEIGHT

    def losses(self, batch, student_out, teacher_out):
        return {"loss_mine": self.weight * F.mse_loss(student_out.logits, teacher_out.logits)}
