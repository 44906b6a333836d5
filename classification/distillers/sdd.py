"""``sdd``: scale decoupled distillation, over ``kd``, ``dkd`` or ``nkd``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.data.batch import Batch
from classification.distillers.base import Pair, register_distiller
from classification.distillers.dkd import DKD
from classification.distillers.kd import KD
from classification.distillers.logits import LogitDistiller
from classification.distillers.nkd import NKD
from classification.models.outputs import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import dkd_loss, kd_loss, multi_scale_logits, nkd_loss, sdd_loss

# A region's loss by its name in SDD.BASE, and what reads its settings.
BASES = {
    "kd": (kd_loss, KD.read_settings),
    "dkd": (dkd_loss, DKD.read_settings),
    "nkd": (nkd_loss, NKD.read_settings),
}


@register_distiller("sdd")
class SDD(LogitDistiller):
    """``loss_sdd``: ``sdd_loss`` (Wei et al. 2024) on the regions' logits, which ``multi_scale_logits`` makes.

    Region 0 is the whole image: the base loss is part of this one.
    """

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        # In a tuple, where they are no submodules: their parameters belong to the models.
        self.classifiers = (
            _classifier("STUDENT.NAME", cfg.STUDENT.NAME, pair.student),
            _classifier("TEACHER.NAME", cfg.TEACHER.NAME, pair.teacher),
        )
        self.scales = _scales(checked(cfg, "SDD.SCALES"), pair)
        self.weight = checked(cfg, "SDD.WEIGHT")
        loss, read_settings = BASES[checked(cfg, "SDD.BASE")]
        self.settings = {
            "base": loss,
            "complementary_weight": checked(cfg, "SDD.COMPLEMENTARY_WEIGHT"),
            **read_settings(cfg),
        }

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        ours, theirs = self.classifiers
        student = multi_scale_logits(student_out.map, ours, self.scales)
        with torch.no_grad():
            teacher = multi_scale_logits(teacher_out.map, theirs, self.scales)
        loss = sdd_loss(self.standardized(student), self.standardized(teacher), batch.labels, **self.settings)
        return {"loss_sdd": self.weight * loss}


def _classifier(key: str, name: str, model: nn.Module) -> nn.Linear:
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Linear) or getattr(model, "pools_linearly", False) is not True:
        raise SetupError(
            f"DISTILLER 'sdd': {key} {name!r} does not average its map and classify it by one linear layer, so that "
            "regions have no logits. Take a model that does, or SDD.BASE alone as the DISTILLER."
        )
    return classifier


def _scales(scales: Sequence[int], pair: Pair) -> tuple[int, ...]:
    for side, out in (("student", pair.student_out), ("teacher", pair.teacher_out)):
        height, width = out.map.shape[2:]
        if max(scales) > min(height, width):
            raise SetupError(
                f"SDD.SCALES {tuple(scales)}: the {side}'s map is {height} x {width}. Leave out what is larger than "
                f"{min(height, width)}, or take larger images."
            )
    return tuple(scales)
