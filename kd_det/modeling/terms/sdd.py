"""``sdd``: scale decoupled distillation on the class logits of the sampled proposals and of their cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from kd_det.common.errors import SetupError, non_negative
from kd_det.common.setting_checks import Check, choice, count
from kd_det.losses import dkd_loss, kd_loss, nkd_loss, sdd_loss
from kd_det.modeling.regions import SharedRegions
from kd_det.modeling.terms.base import LogitTerm, Maps, register_term
from kd_det.modeling.terms.dkd import DKDTerm
from kd_det.modeling.terms.kd import KDLossTerm
from kd_det.modeling.terms.nkd import NKDTerm
from kd_det.teacher.cells import FINEST, KINDS, Cells

# The loss of a region by its name in KD.SDD.BASE, and the term whose settings it takes.
BASES: dict[str, tuple[Callable[..., Tensor], type[LogitTerm]]] = {
    "kd": (kd_loss, KDLossTerm),
    "dkd": (dkd_loss, DKDTerm),
    "nkd": (nkd_loss, NKDTerm),
}


def _scales(key: str, value: Any) -> None:
    """1 and then different sides of 2 to ``FINEST``."""
    sides = list(value)
    whole = all(type(side) is int and 1 <= side <= FINEST for side in sides)
    if not whole or sides[:1] != [1] or len(set(sides)) < len(sides):
        raise SetupError(
            f"{key} is {tuple(value)!s:.200}; it must be 1, the whole proposal, and then different whole numbers of "
            f"cells along a side, 2 to {FINEST}: (1, 2)."
        )


@register_term("sdd")
class SDDTerm(LogitTerm):
    """``loss_sdd``: ``sdd_loss`` (Wei et al. 2024) averaged over the batch's proposals and their regions.

    Region 0 of a proposal is the whole, with the logits that the box head is trained on, so that the base loss is part
    of this one; the others are its cells (``kd_det.teacher.cells``). The target class of each is the proposal's label.

    Args:
        weight: of the loss.
        base: the loss of one region, as ``sdd_loss`` takes it.
        base_settings: the base's own.
        complementary_weight: of a region that the teacher judges otherwise than the whole.
        cells: how proposals are divided; None leaves the whole alone.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.SDD.WEIGHT": non_negative,
        "KD.SDD.BASE": choice(*BASES),
        "KD.SDD.SCALES": _scales,
        "KD.SDD.CELLS": choice(*KINDS),
        "KD.SDD.PROPOSALS": count(0),
        "KD.SDD.COMPLEMENTARY_WEIGHT": non_negative,
    }

    @configurable
    def __init__(
        self,
        *,
        weight: float,
        base: Callable[..., Tensor],
        base_settings: dict[str, float],
        complementary_weight: float,
        cells: Cells | None,
    ) -> None:
        super().__init__(weight=weight)
        self.settings = {"base": base, "complementary_weight": complementary_weight, **base_settings}
        self.cells = cells

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        node = cfg.KD.SDD
        base, term = BASES[node.BASE]
        settings = term.from_config(cfg, maps)
        return {
            "weight": node.WEIGHT,
            "base": base,
            "base_settings": {name: value for name, value in settings.items() if name != "weight"},
            "complementary_weight": node.COMPLEMENTARY_WEIGHT,
            "cells": _cells(node.SCALES, node.CELLS, node.PROPOSALS),
        }

    def region_loss(self, regions: SharedRegions) -> Tensor:
        if regions.cell_rows is None:
            whole = regions.student_logits.unsqueeze(-1), regions.teacher_logits.unsqueeze(-1)
            return sdd_loss(*whole, regions.labels, **self.settings)
        divided = _only(regions, regions.cell_rows)
        student = torch.cat((divided.student_logits.unsqueeze(-1), regions.student_cells), dim=-1)
        teacher = torch.cat((divided.teacher_logits.unsqueeze(-1), regions.teacher_cells), dim=-1)
        loss = sdd_loss(student, teacher, divided.labels, **self.settings)
        if len(divided.labels) == len(regions.labels):
            return loss
        # The wholes are at hand for all proposals: theirs take the place of the sample's in the mean.
        return loss + (self._wholes(regions) - self._wholes(divided)) / student.shape[-1]

    def _wholes(self, regions: SharedRegions) -> Tensor:
        return self.region_loss(replace(regions, cell_rows=None))


def _only(regions: SharedRegions, rows: Tensor) -> SharedRegions:
    """The wholes of the proposals ``rows`` (S,)."""
    return SharedRegions(regions.student_logits[rows], regions.teacher_logits[rows], regions.labels[rows])


def _cells(scales: Sequence[int], kind: str, proposals: int) -> Cells | None:
    return Cells(tuple(scales[1:]), kind, proposals or None) if len(scales) > 1 else None
