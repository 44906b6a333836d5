"""``dkd``: decoupled knowledge distillation on the class logits of the sampled proposals."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from torch import Tensor

from kd_det.common.errors import non_negative, positive
from kd_det.losses import dkd_loss
from kd_det.modeling.regions import SharedRegions
from kd_det.modeling.terms.base import LogitTerm, Maps, register_term


@register_term("dkd")
class DKDTerm(LogitTerm):
    """``loss_dkd``: ``dkd_loss`` (Zhao et al. 2022) averaged over the batch's proposals.

    The target class of a proposal is its label, the background (class K) included.
    """

    @configurable
    def __init__(self, *, weight: float, alpha: float, beta: float, temperature: float) -> None:
        super().__init__(weight=weight)
        self.settings = {"alpha": alpha, "beta": beta, "temperature": temperature}

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        del maps
        node = cfg.KD.DKD
        return {
            "weight": non_negative("KD.DKD.WEIGHT", node.WEIGHT),
            "alpha": non_negative("KD.DKD.ALPHA", node.ALPHA),
            "beta": non_negative("KD.DKD.BETA", node.BETA),
            "temperature": positive("KD.DKD.TEMPERATURE", node.TEMPERATURE),
        }

    def region_loss(self, regions: SharedRegions) -> Tensor:
        return dkd_loss(regions.student_logits, regions.teacher_logits, regions.labels, **self.settings)
