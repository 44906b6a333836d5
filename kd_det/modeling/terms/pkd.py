"""``pkd``: imitation of the teacher's feature maps up to their mean and scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detectron2.config import CfgNode
from torch import Tensor

from kd_det.common.errors import non_negative
from kd_det.common.setting_checks import Check, name_pairs
from kd_det.losses import pkd_loss
from kd_det.modeling.regions import DistillationInputs
from kd_det.modeling.terms.base import Maps, register_term
from kd_det.modeling.terms.features import Adapters, FeatureTerm, feature_pairs


@register_term("pkd")
class PKDTerm(FeatureTerm):
    """``loss_pkd``: ``pkd_loss`` (Cao et al. 2022) between the student's and the teacher's maps.

    As in the paper there is no adapter, except where the numbers of channels differ.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.PKD.WEIGHT": non_negative,
        "KD.PKD.FEATURES": name_pairs,
    }

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        node = cfg.KD.PKD
        pairs = feature_pairs("KD.PKD.FEATURES", node.FEATURES, maps)
        return {
            "weight": node.WEIGHT,
            "pairs": pairs,
            "adapt": Adapters(pairs, where_equal=False),
        }

    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        del inputs
        return pkd_loss(student, teacher)
