"""``dkd``: decoupled knowledge distillation on the class logits of the sampled proposals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from torch import Tensor

from kd_det.common.errors import non_negative, temperature
from kd_det.common.setting_checks import Check
from kd_det.losses import dkd_loss
from kd_det.modeling.regions import SharedRegions
from kd_det.modeling.terms.base import LogitTerm, Maps, register_term


@register_term("dkd")
class DKDTerm(LogitTerm):
    """``loss_dkd``: ``dkd_loss`` (Zhao et al. 2022) averaged over the batch's proposals.

    The target class of a proposal is its label, the background (class K) included.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.DKD.WEIGHT": non_negative,
        "KD.DKD.ALPHA": non_negative,
        "KD.DKD.BETA": non_negative,
        "KD.DKD.TEMPERATURE": temperature,
    }

    @configurable
    def __init__(self, *, weight: float, alpha: float, beta: float, temperature: float) -> None:
        super().__init__(weight=weight)
        self.settings = {"alpha": alpha, "beta": beta, "temperature": temperature}

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        del maps
        node = cfg.KD.DKD
        return {
            "weight": node.WEIGHT,
            "alpha": node.ALPHA,
            "beta": node.BETA,
            "temperature": node.TEMPERATURE,
        }

    def region_loss(self, regions: SharedRegions) -> Tensor:
        return dkd_loss(regions.student_logits, regions.teacher_logits, regions.labels, **self.settings)
