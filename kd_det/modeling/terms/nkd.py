"""``nkd``: normalised knowledge distillation on the class logits of the sampled proposals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from torch import Tensor

from kd_det.common.errors import non_negative, temperature
from kd_det.common.setting_checks import Check
from kd_det.losses import nkd_loss
from kd_det.modeling.regions import SharedRegions
from kd_det.modeling.terms.base import LogitTerm, Maps, register_term


@register_term("nkd")
class NKDTerm(LogitTerm):
    """``loss_nkd``: ``nkd_loss`` (Yang et al. 2023) averaged over the batch's proposals.

    The target class of a proposal is its label, the background (class K) included.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.NKD.WEIGHT": non_negative,
        "KD.NKD.GAMMA": non_negative,
        "KD.NKD.TEMPERATURE": temperature,
    }

    @configurable
    def __init__(self, *, weight: float, gamma: float, temperature: float) -> None:
        super().__init__(weight=weight)
        self.settings = {"gamma": gamma, "temperature": temperature}

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        del maps
        node = cfg.KD.NKD
        return {
            "weight": node.WEIGHT,
            "gamma": node.GAMMA,
            "temperature": node.TEMPERATURE,
        }

    def region_loss(self, regions: SharedRegions) -> Tensor:
        return nkd_loss(regions.student_logits, regions.teacher_logits, regions.labels, **self.settings)
