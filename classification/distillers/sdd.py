"""``sdd``: scale decoupled distillation, over ``kd``, ``dkd`` or ``nkd``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.data import Batch
from classification.distillers.base import LogitDistiller, NetworkPair, register_distiller
from classification.distillers.dkd import DKD
from classification.distillers.kd import KD, NKD
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import dkd_loss, kd_loss, multi_scale_logits, nkd_loss, sdd_loss

# The values of SDD.BASE: the loss of a region, and the function that reads its settings.
BASES = {
    "kd": (kd_loss, KD.read_settings),
    "dkd": (dkd_loss, DKD.read_settings),
    "nkd": (nkd_loss, NKD.read_settings),
}


MOST_REPEATED = 16  # of SDD.SCALES with SDD.REPEAT; a typing error must not take all memory


@register_distiller("sdd")
class SDD(LogitDistiller):
    """``loss_sdd``: ``sdd_loss`` (Wei et al. 2024) on the logits of regions, from ``multi_scale_logits``.

    Region 0 is the whole image, so that the base loss is part of this loss.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        # In a tuple they are not submodules: their parameters belong to the models.
        self.classifiers = (
            linear_classifier(cfg.DISTILLER, "STUDENT.NAME", cfg.STUDENT.NAME, pair.student),
            linear_classifier(cfg.DISTILLER, "TEACHER.NAME", cfg.TEACHER.NAME, pair.teacher),
        )
        self.repeat = checked(cfg, "SDD.REPEAT")
        self.scales = _scales(checked(cfg, "SDD.SCALES"), self.repeat, pair)
        self.weight = checked(cfg, "SDD.WEIGHT")
        loss, read_settings = BASES[checked(cfg, "SDD.BASE")]
        self.settings = {
            "base": loss,
            "complementary_weight": checked(cfg, "SDD.COMPLEMENTARY_WEIGHT"),
            **read_settings(cfg),
        }

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        ours, theirs = self.classifiers
        student = multi_scale_logits(student_out.map, ours, self.scales, repeat=self.repeat)
        with torch.no_grad():
            teacher = multi_scale_logits(teacher_out.map, theirs, self.scales, repeat=self.repeat)
        loss = sdd_loss(self.standardized(student), self.standardized(teacher), batch.labels, **self.settings)
        return {"loss_sdd": self.weight * loss}


def linear_classifier(method: str, key: str, name: str, model: nn.Module | None) -> nn.Linear:
    """The classifier of ``model``, which ``key`` names.

    Raises:
        SetupError: the model's logits are not the linear classifier's of the map's average.
    """
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Linear) or getattr(model, "pools_linearly", False) is not True:
        raise SetupError(
            f"DISTILLER {method!r}: {key} {name!r} does not classify the average of its map by one linear layer, so "
            "that positions have no logits. Take a model that does, or another DISTILLER."
        )
    return classifier


def _scales(scales: Sequence[int], repeat: bool, pair: NetworkPair) -> tuple[int, ...]:
    for side, out in (("student", pair.student_out), ("teacher", pair.teacher_out)):
        height, width = out.map.shape[2:]
        fitting = min(height, width)
        if max(scales) > (max(MOST_REPEATED, fitting) if repeat else fitting):
            remedy = f"at most {MOST_REPEATED} with SDD.REPEAT" if repeat else "or set SDD.REPEAT True"
            raise SetupError(
                f"SDD.SCALES {tuple(scales)}: the {side}'s map is {height} x {width}. Remove scales above {fitting}, "
                f"{remedy}, or take larger images."
            )
    return tuple(scales)
