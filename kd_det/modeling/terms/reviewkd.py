"""``reviewkd``: fused feature maps of the student against the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detectron2.config import CfgNode
from torch import Tensor

from kd_det.common.errors import non_negative
from kd_det.common.setting_checks import Check, channels, name_pairs
from kd_det.losses import ReviewKDFusion, hcl_loss
from kd_det.modeling.regions import DistillationInputs
from kd_det.modeling.terms.base import Maps, register_term
from kd_det.modeling.terms.features import FeatureTerm, feature_pairs


@register_term("reviewkd")
class ReviewKDTerm(FeatureTerm):
    """``loss_reviewkd``: ``hcl_loss`` between the student's maps after ``ReviewKDFusion`` and the teacher's.

    Chen et al. 2021: every map is compared after the smaller maps of the student were fused into it.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.REVIEWKD.WEIGHT": non_negative,
        "KD.REVIEWKD.FEATURES": name_pairs,
        "KD.REVIEWKD.MID_CHANNELS": channels,
    }

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        node = cfg.KD.REVIEWKD
        pairs = feature_pairs("KD.REVIEWKD.FEATURES", node.FEATURES, maps)
        fusion = ReviewKDFusion(
            [pair.student_shape.channels for pair in pairs],
            [pair.teacher_shape.channels for pair in pairs],
            node.MID_CHANNELS,
        )
        return {"weight": node.WEIGHT, "pairs": pairs, "adapt": fusion}

    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        del inputs
        return hcl_loss(student, teacher)
