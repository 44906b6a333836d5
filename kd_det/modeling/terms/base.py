"""The contract of a KD term, and the registry of all terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from kd_det.common.errors import SetupError
from kd_det.common.setting_checks import Check
from kd_det.config import TERMS
from kd_det.config.check import check_keys
from kd_det.modeling.regions import DistillationInputs

Term = TypeVar("Term", bound="type[KDTerm]")


class KDTerm(nn.Module, ABC):
    """A distillation loss of the detector, named in ``KD.TERMS``.

    It is built as ``Term(cfg, maps)``; with ``@configurable``, only ``from_config`` sees ``cfg``. It is a module, so
    that what it learns (an adapter, say) is trained with the student. Its parameters are not part of the student's
    checkpoint.
    """

    # The name in KD.TERMS, set by ``register_term``.
    name: ClassVar[str]
    # Whether the term needs box logits. If no term does, the teacher's box head is not run.
    needs_logits: ClassVar[bool] = False
    # Configuration keys that the term brings, with their defaults: {"WEIGHT": 1.0} of the term "p3" is KD.P3.WEIGHT.
    # The keys of the terms in this package are in ``kd_det.config.defaults``, with comments.
    keys: ClassVar[Mapping[str, Any]] = {}
    # Keys that the term reads, each with the check of its value. Every command line applies them.
    checks: ClassVar[Mapping[str, Check]] = {}
    # Whether the term needs the teacher itself, for its maps or its box stages. False: it needs only class logits of
    # proposals, which KD.TEACHER.STORED can give.
    needs_teacher: ClassVar[bool] = True
    # Whether the term needs the student's RPN anchors.
    needs_anchors: ClassVar[bool] = False

    @abstractmethod
    def forward(self, inputs: DistillationInputs) -> dict[str, Tensor]:
        """Returns scalar losses, already weighted. Each name starts with ``loss_`` and is unique."""




def register_term(name: str) -> Callable[[Term], Term]:
    """Class decorator that registers a term under the name that ``KD.TERMS`` gives it.

    Raises:
        ValueError: there is already a term of that name, or its ``keys`` or ``checks`` are not valid.
    """

    def register(term: Term) -> Term:
        term.name = name
        TERMS.register(name)(term)
        return term

    return register


@dataclass(frozen=True)
class Maps:
    """The maps of both backbones, name to channels and stride (pixels).

    Attributes:
        student: the student's.
        find_teacher: gives the teacher's. It reads the teacher's configuration, and is called when a term first asks.
    """

    student: Mapping[str, ShapeSpec]
    find_teacher: Callable[[], Mapping[str, ShapeSpec]]

    @cached_property
    def teacher(self) -> Mapping[str, ShapeSpec]:
        """The teacher's maps, name to channels and stride (pixels)."""
        return self.find_teacher()


def build_terms(cfg: CfgNode, maps: Maps) -> dict[str, KDTerm]:
    """The terms that ``KD.TERMS`` names, in that order; each is built as ``Term(cfg, maps)``.

    Raises:
        SetupError: a name is unknown or listed twice, or a setting of a term is invalid.
    """
    names = list(cfg.KD.TERMS)
    for name in names:
        TERMS.find(name)
        if names.count(name) > 1:
            raise SetupError(f"KD.TERMS: {name!r} is listed twice in {names}; name it once and set its WEIGHT.")
    for name in (*names, *TERMS):  # a term may read another's keys
        check_keys(cfg, TERMS[name].checks)
    return {name: TERMS[name](cfg, maps) for name in names}
