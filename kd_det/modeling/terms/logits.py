"""The terms ``kd``, ``dkd`` and ``nkd``, on the class logits of the sampled proposals."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from kd_det.common.errors import non_negative, temperature
from kd_det.common.setting_checks import Check
from kd_det.losses import dkd_loss, kd_loss, nkd_loss
from kd_det.modeling.regions import DistillationInputs, SharedRegions
from kd_det.modeling.terms.base import KDTerm, Maps, register_term


class LogitTerm(KDTerm):
    """A term with one loss on the logits of shared proposals. Subclasses define ``region_loss``.

    With ``KD.TEACHER.STORED`` the proposals are those with stored logits, without a teacher. A subclass that looks at
    more of the teacher sets ``needs_teacher``.

    The loss is summed over the student's box stages, as Detectron2 sums a Cascade's own losses.

    Args:
        weight: of the loss.
    """

    needs_logits = True
    needs_teacher = False

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def region_loss(self, regions: SharedRegions) -> Tensor:
        """Returns the scalar loss of one box stage, a mean over its R proposals, unweighted."""

    def forward(self, inputs: DistillationInputs) -> dict[str, Tensor]:
        losses = torch.stack([self.region_loss(regions) for regions in inputs.regions])
        return {f"loss_{self.name}": self.weight * losses.sum()}


@register_term("kd")
class KDLossTerm(LogitTerm):
    """``loss_kd``: ``kd_loss`` (Hinton et al. 2015), averaged over the batch's proposals."""

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
        return {"weight": node.WEIGHT, "temperature": node.TEMPERATURE}

    def region_loss(self, regions: SharedRegions) -> Tensor:
        return kd_loss(regions.student_logits, regions.teacher_logits, temperature=self.temperature)


@register_term("dkd")
class DKDTerm(LogitTerm):
    """``loss_dkd``: ``dkd_loss`` (Zhao et al. 2022), averaged over the batch's proposals.

    The target class of a proposal is its label, which may be the background.
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
        self.settings: dict[str, Any] = {"alpha": alpha, "beta": beta, "temperature": temperature}

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        del maps
        node = cfg.KD.DKD
        return {"weight": node.WEIGHT, "alpha": node.ALPHA, "beta": node.BETA, "temperature": node.TEMPERATURE}

    def region_loss(self, regions: SharedRegions) -> Tensor:
        return dkd_loss(regions.student_logits, regions.teacher_logits, regions.labels, **self.settings)


@register_term("nkd")
class NKDTerm(LogitTerm):
    """``loss_nkd``: ``nkd_loss`` (Yang et al. 2023), averaged over the batch's proposals.

    The target class of a proposal is its label, which may be the background.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.NKD.WEIGHT": non_negative,
        "KD.NKD.GAMMA": non_negative,
        "KD.NKD.TEMPERATURE": temperature,
    }

    @configurable
    def __init__(self, *, weight: float, gamma: float, temperature: float) -> None:
        super().__init__(weight=weight)
        self.settings: dict[str, Any] = {"gamma": gamma, "temperature": temperature}

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        del maps
        node = cfg.KD.NKD
        return {"weight": node.WEIGHT, "gamma": node.GAMMA, "temperature": node.TEMPERATURE}

    def region_loss(self, regions: SharedRegions) -> Tensor:
        return nkd_loss(regions.student_logits, regions.teacher_logits, regions.labels, **self.settings)
