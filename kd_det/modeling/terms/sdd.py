"""The term ``sdd``: scale decoupled distillation on the class logits of the sampled proposals and of their cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from kd_det.common.errors import SetupError, non_negative
from kd_det.common.setting_checks import Check, choice, count
from kd_det.losses import dkd_loss, kd_loss, nkd_loss, sdd_loss
from kd_det.modeling.regions import SharedRegions
from kd_det.modeling.terms.base import Maps, register_term
from kd_det.modeling.terms.cells import FINEST, KINDS, Cells, choose_boxes, classify_cells
from kd_det.modeling.terms.logits import DKDTerm, KDLossTerm, LogitTerm, NKDTerm

# The loss of a region by its name in KD.SDD.BASE, and the term whose settings it takes.
BASES: dict[str, tuple[Callable[..., Tensor], type[KDLossTerm | DKDTerm | NKDTerm]]] = {
    "kd": (kd_loss, KDLossTerm),
    "dkd": (dkd_loss, DKDTerm),
    "nkd": (nkd_loss, NKDTerm),
}


def _scales(key: str, value: Any) -> None:
    """Checks that the value is 1, followed by different whole numbers from 2 to ``FINEST``."""
    sides = list(value)
    whole = all(type(side) is int and 1 <= side <= FINEST for side in sides)
    if not whole or sides[:1] != [1] or len(set(sides)) < len(sides):
        raise SetupError(
            f"{key} is {tuple(value)!s:.200}; it must be 1, the whole proposal, and then different whole numbers of "
            f"cells along a side, from 2 to {FINEST}, such as (1, 2)."
        )


@register_term("sdd")
class SDDTerm(LogitTerm):
    """``loss_sdd``: ``sdd_loss`` (Wei et al. 2024), averaged over the batch's proposals and their regions.

    Region 0 of a proposal is the whole proposal, with the logits that the box head is trained on: this loss includes
    its base loss. The other regions are the proposal's cells (``kd_det.modeling.terms.cells``). The target class of
    each region is the proposal's label.

    Args:
        weight: of the loss.
        base: the loss of one region, as ``sdd_loss`` takes it.
        base_settings: keyword arguments of ``base``.
        complementary_weight: of a region where the teacher is right and wrong about the whole, or the reverse.
        cells: how proposals are divided; None: they are not, and the loss is the base loss.
    """

    needs_teacher = True  # it classifies the cells

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
        self.settings: dict[str, Any] = {"base": base, "complementary_weight": complementary_weight, **base_settings}
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
        every = _Wholes(regions.student_logits, regions.teacher_logits, regions.labels)
        if self.cells is None:
            return self._loss_of_wholes(every)
        rows = _divided(regions, self.cells)
        divided = _Wholes(*(values[rows] for values in every))
        boxes = choose_boxes(regions.boxes, rows)
        assert regions.teacher_stage is not None  # the term needs the teacher
        student, teacher = (
            torch.cat((whole.unsqueeze(-1), classify_cells(stage, boxes, self.cells)), dim=-1)
            for whole, stage in (
                (divided.student, regions.student_stage),
                (divided.teacher, regions.teacher_stage),
            )
        )
        loss = sdd_loss(student, teacher, divided.labels, **self.settings)
        if len(rows) == len(every.labels):
            return loss
        # The logits of all whole proposals are there: their mean replaces that of the divided ones.
        return loss + (self._loss_of_wholes(every) - self._loss_of_wholes(divided)) / student.shape[-1]

    def _loss_of_wholes(self, wholes: _Wholes) -> Tensor:
        return sdd_loss(wholes.student.unsqueeze(-1), wholes.teacher.unsqueeze(-1), wholes.labels, **self.settings)


class _Wholes(NamedTuple):
    """Logits (R, C) of whole proposals by both networks, and their labels (R,)."""

    student: Tensor
    teacher: Tensor
    labels: Tensor


def _divided(regions: SharedRegions, cells: Cells) -> Tensor:
    """(S,) int64, ascending: which of the R proposals are divided. They are chosen among all that were sampled."""
    if regions.kept is None:
        return cells.rows(len(regions.labels), regions.labels.device)
    chosen = cells.rows(len(regions.kept), regions.kept.device)
    return (regions.kept.cumsum(0) - 1)[chosen[regions.kept[chosen]]]


def _cells(scales: Sequence[int], kind: str, proposals: int) -> Cells | None:
    return Cells(tuple(scales[1:]), kind, proposals or None) if len(scales) > 1 else None
