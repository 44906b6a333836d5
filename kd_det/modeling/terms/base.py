"""The contract of a KD term, and the list of those that exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from kd_det.common.errors import SetupError
from kd_det.common.setting_checks import Check
from kd_det.config import TERMS
from kd_det.config.check import check_keys
from kd_det.modeling.regions import DistillationInputs, SharedRegions
from kd_det.teacher.cells import Cells

Term = TypeVar("Term", bound="type[KDTerm]")


class KDTerm(nn.Module, ABC):
    """A distillation loss of the detector, named in ``KD.TERMS``.

    A module, so that what a term learns (an adapter, say) is trained with the student; it is kept out of the student's
    checkpoint. Subclasses are built with ``@configurable`` and read ``cfg`` in ``from_config`` alone.
    """

    # The name in KD.TERMS, set by ``register_term``.
    name: ClassVar[str]
    # Whether the term looks at box logits; where none does, the teacher's box head is not run.
    needs_logits: ClassVar[bool] = False
    # Configuration keys that the term brings, with their defaults: {"WEIGHT": 1.0} of the term "p3" is KD.P3.WEIGHT.
    # The keys of the terms in this package are in ``kd_det.config.defaults``, with comments.
    keys: ClassVar[Mapping[str, Any]] = {}
    # Keys that the term reads, each with the check of its value: ``build_terms`` and every command line apply them.
    checks: ClassVar[Mapping[str, Check]] = {}
    # Whether the term looks at the student's RPN anchors.
    needs_anchors: ClassVar[bool] = False
    # The cells of the proposals whose logits the term looks at.
    cells: Cells | None = None

    @abstractmethod
    def forward(self, inputs: DistillationInputs) -> dict[str, Tensor]:
        """Returns scalar losses, already weighted, each under a name that starts with ``loss_``."""


class LogitTerm(KDTerm):
    """A term that is one loss on the logits of shared proposals.

    Summed over the student's box stages, as Detectron2 sums a Cascade's own losses.
    """

    needs_logits = True

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def region_loss(self, regions: SharedRegions) -> Tensor:
        """Returns the scalar loss, a mean over the R proposals of one box stage, unweighted."""

    def forward(self, inputs: DistillationInputs) -> dict[str, Tensor]:
        losses = torch.stack([self.region_loss(regions) for regions in inputs.regions])
        return {f"loss_{self.name}": self.weight * losses.sum()}


def register_term(name: str) -> Callable[[Term], Term]:
    """Class decorator that makes a term known to ``KD.TERMS`` as ``name``.

    Raises:
        ValueError: there is a term of that name already, or its ``keys`` or ``checks`` are not valid.
    """

    def register(term: Term) -> Term:
        term.name = name
        return TERMS.register(name)(term)

    return register


@dataclass(frozen=True)
class Maps:
    """The maps of both backbones, name to channels and stride (pixels).

    Attributes:
        student: the student's, at once.
        find_teacher: gives the teacher's. Called only by terms that need them: it reads the teacher's configuration.
    """

    student: Mapping[str, ShapeSpec]
    find_teacher: Callable[[], Mapping[str, ShapeSpec]]

    @cached_property
    def teacher(self) -> Mapping[str, ShapeSpec]:
        """The teacher's."""
        return self.find_teacher()


def build_terms(cfg: CfgNode, maps: Maps) -> dict[str, KDTerm]:
    """The terms that ``KD.TERMS`` names, in its order; each is built as ``Term(cfg, maps)``.

    Raises:
        SetupError: a name is unknown or listed twice, or a setting of a term makes no sense.
    """
    names = list(cfg.KD.TERMS)
    for name in names:
        TERMS.find(name)
        if names.count(name) > 1:
            raise SetupError(f"KD.TERMS: {name!r} is listed twice in {names}; name it once and set its WEIGHT.")
    for name in (*names, *TERMS):  # a term may read another's keys
        check_keys(cfg, TERMS[name].checks)
    return {name: TERMS[name](cfg, maps) for name in names}
