"""``fitnet``: regression of the teacher's feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detectron2.config import CfgNode
from torch import Tensor

from kd_det.common.errors import non_negative
from kd_det.common.setting_checks import Check, name_pairs
from kd_det.losses import fitnet_loss
from kd_det.modeling.regions import DistillationInputs
from kd_det.modeling.terms.base import Maps, register_term
from kd_det.modeling.terms.features import Adapters, FeatureTerm, feature_pairs


@register_term("fitnet")
class FitNetTerm(FeatureTerm):
    """``loss_fitnet``: ``fitnet_loss`` (Romero et al. 2015) between the adapted student's and the teacher's maps."""

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.FITNET.WEIGHT": non_negative,
        "KD.FITNET.FEATURES": name_pairs,
    }

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        node = cfg.KD.FITNET
        pairs = feature_pairs("KD.FITNET.FEATURES", node.FEATURES, maps)
        return {
            "weight": node.WEIGHT,
            "pairs": pairs,
            "adapt": Adapters(pairs, where_equal=True),
        }

    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        del inputs
        return fitnet_loss(student, teacher)
