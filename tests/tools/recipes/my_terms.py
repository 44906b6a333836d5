# my_terms.py
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from kd_det.common.errors import non_negative
from kd_det.modeling.terms import KDTerm, register_term


@register_term("p3")
class P3Term(KDTerm):
    """``loss_p3``: mean squared error between the two p3 maps, the student's adapted by a 1x1 convolution."""

    keys = {"WEIGHT": 1.0}  # noqa: RUF012
    checks = {"KD.P3.WEIGHT": non_negative}  # noqa: RUF012

    @configurable
    def __init__(self, *, weight, student_channels, teacher_channels):
        super().__init__()
        self.weight = weight
        self.adapt = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)

    @classmethod
    def from_config(cls, cfg, maps):
        channels = {"student_channels": maps.student["p3"].channels, "teacher_channels": maps.teacher["p3"].channels}
        return {"weight": cfg.KD.P3.WEIGHT, **channels}

    def forward(self, inputs):
        student, teacher = inputs.student_features["p3"], inputs.teacher_features["p3"]
        return {"loss_p3": self.weight * F.mse_loss(self.adapt(student), teacher)}
