"""``dist``, ``mlkd``, ``ctkd`` and ``catkd``: class scores of samples, classes, temperatures and positions."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.data import Batch
from classification.distillers.base import LogitDistiller, NetworkPair, register_distiller
from classification.distillers.sdd import linear_classifier
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import catkd_loss, class_activation_maps, ctkd_loss, ctkd_reversal, dist_loss, mlkd_loss


@register_distiller("dist")
class DIST(LogitDistiller):
    """``loss_dist``: ``dist_loss`` (Huang et al. 2022)."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "DIST.WEIGHT")
        self.settings = {
            "inter_weight": checked(cfg, "DIST.INTER_WEIGHT"),
            "intra_weight": checked(cfg, "DIST.INTRA_WEIGHT"),
            "temperature": checked(cfg, "DIST.TEMPERATURE"),
        }

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = dist_loss(self.logits(student_out), self.logits(teacher_out), **self.settings)
        return {"loss_dist": self.weight * loss}


@register_distiller("mlkd")
class MLKD(LogitDistiller):
    """``loss_mlkd``: ``mlkd_loss`` (Jin et al. 2023); ``loss_mlkd_strong``: its part on samples, on the strong view.

    DATA.STRONG_VIEW True gives the second view, as published. STANDARDIZE applies to the part on samples alone, as in
    the code of Sun et al. 2024.
    """

    takes_strong_view = True

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight, self.temperatures = checked(cfg, "MLKD.WEIGHT"), checked(cfg, "MLKD.TEMPERATURES")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_mlkd": self._loss(student_out, teacher_out, relations=True)}

    def strong_losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_mlkd_strong": self._loss(student_out, teacher_out, relations=False)}

    def _loss(self, student_out: ModelOutput, teacher_out: ModelOutput, *, relations: bool) -> Tensor:
        settings = {"temperatures": self.temperatures, "relations": relations, "standardize": self.standardize}
        return self.weight * mlkd_loss(student_out.logits, teacher_out.logits, **settings)


@register_distiller("ctkd")
class CTKD(LogitDistiller):
    """``loss_ctkd``: ``ctkd_loss`` (Li et al. 2023), KD at a learned temperature.

    theta is trained with the student, and saved for ``--resume``.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight, self.epochs = checked(cfg, "CTKD.WEIGHT"), checked(cfg, "CTKD.EPOCHS")
        self.start, self.span = checked(cfg, "CTKD.START"), checked(cfg, "CTKD.SPAN")
        self.theta = nn.Parameter(torch.ones(1))
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self.reversal = ctkd_reversal(epoch + 1, epochs=self.epochs)

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        s, t = self.logits(student_out), self.logits(teacher_out)
        loss = ctkd_loss(s, t, self.theta, reversal=self.reversal, start=self.start, span=self.span)
        return {"loss_ctkd": self.weight * loss}


@register_distiller("catkd")
class CATKD(LogitDistiller):
    """``loss_catkd``: ``catkd_loss`` (Guo et al. 2023) on the class activation maps of both networks."""

    compares_logits = False

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        # In a tuple they are not submodules: their parameters belong to the models.
        self.classifiers = (
            linear_classifier(cfg.DISTILLER, "STUDENT.NAME", cfg.STUDENT.NAME, pair.student),
            linear_classifier(cfg.DISTILLER, "TEACHER.NAME", cfg.TEACHER.NAME, pair.teacher),
        )
        self.weight = checked(cfg, "CATKD.WEIGHT")
        self.settings = {
            "resolution": checked(cfg, "CATKD.RESOLUTION"),
            "normalize": checked(cfg, "CATKD.NORMALIZE"),
        }
        side = min(*pair.student_out.map.shape[2:], *pair.teacher_out.map.shape[2:])
        if self.settings["resolution"] > side:
            raise SetupError(
                f"CATKD.RESOLUTION {self.settings['resolution']}: the smaller of the two maps has a side of {side}. "
                f"Set it to {side} or less, or take larger images."
            )

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        ours, theirs = self.classifiers
        student = class_activation_maps(student_out.map, ours)
        with torch.no_grad():
            teacher = class_activation_maps(teacher_out.map, theirs)
        return {"loss_catkd": self.weight * catkd_loss(student, teacher, **self.settings)}
