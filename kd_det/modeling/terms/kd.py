"""``kd``: classical knowledge distillation on the class logits of the sampled proposals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from torch import Tensor

from kd_det.common.errors import non_negative, temperature
from kd_det.common.setting_checks import Check
from kd_det.losses import kd_loss
from kd_det.modeling.regions import SharedRegions
from kd_det.modeling.terms.base import LogitTerm, Maps, register_term


@register_term("kd")
class KDLossTerm(LogitTerm):
    """``loss_kd``: ``kd_loss`` (Hinton et al. 2015) averaged over the batch's proposals."""

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.KD.WEIGHT": non_negative,
        "KD.KD.TEMPERATURE": temperature,
    }

    @configurable
    def __init__(self, *, weight: float, temperature: float) -> None:
        super().__init__(weight=weight)
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        del maps
        node = cfg.KD.KD
        return {
            "weight": node.WEIGHT,
            "temperature": node.TEMPERATURE,
        }

    def region_loss(self, regions: SharedRegions) -> Tensor:
        return kd_loss(regions.student_logits, regions.teacher_logits, temperature=self.temperature)
