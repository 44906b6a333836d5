"""Several methods at once: ``DISTILLER: sdd+reviewkd``; and how a method is found by its name."""

from __future__ import annotations

from functools import cache
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.data import Batch
from classification.distillers.base import DISTILLERS, Distiller, NetworkPair
from classification.models import ModelOutput
from kd_det.common.errors import SetupError

PLUS = "+"


def build_distiller(cfg: CfgNode, pair: NetworkPair) -> Distiller:
    """The distiller that ``cfg.DISTILLER`` names.

    Raises:
        SetupError: see ``distiller_class``; or a setting does not fit the pair.
    """
    return distiller_class(cfg.DISTILLER)(cfg, pair)


def distiller_class(name: str) -> type[Distiller]:
    """The class registered as ``name``; for "sdd+reviewkd" a class that has these two.

    Raises:
        SetupError: there is none of that name (the nearest is suggested), one is listed twice, or they cannot be
            combined.
    """
    names = name.split(PLUS)
    return DISTILLERS.find(name) if len(names) == 1 else _combination(tuple(part.strip() for part in names))


class Several(Distiller):
    """The losses of several distillers, added up. Each has its own section, and in it its own weight.

    The cross-entropy with the labels is added unless one of them goes without (MCLD.CE False). STANDARDIZE applies to
    those that compare logits, and DATA.STRONG_VIEW to those that take two views.
    """

    names: tuple[str, ...]

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.parts = nn.ModuleDict({name: DISTILLERS[name](_own(cfg, name), pair) for name in self.names})
        self.uses_cross_entropy = all(part.uses_cross_entropy for part in self._parts)

    @property
    def _parts(self) -> list[Distiller]:
        return [part for part in self.parts.values() if isinstance(part, Distiller)]

    def start_epoch(self, epoch: int) -> None:
        for part in self._parts:
            part.start_epoch(epoch)

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: Any) -> dict[str, Tensor]:
        return {k: loss for part in self._parts for k, loss in part.losses(batch, student_out, teacher_out).items()}

    def strong_losses(self, batch: Batch, student_out: ModelOutput, teacher_out: Any) -> dict[str, Tensor]:
        found = [part.strong_losses(batch, student_out, teacher_out) for part in self._parts]
        return {name: loss for losses in found for name, loss in losses.items()}


def _own(cfg: CfgNode, name: str) -> CfgNode:
    """The configuration of the part ``name``: without the settings that only the other parts take."""
    own, kind = cfg.clone(), DISTILLERS[name]
    own.DISTILLER = name
    own.STANDARDIZE = cfg.STANDARDIZE and kind.compares_logits
    own.DATA.STRONG_VIEW = cfg.DATA.STRONG_VIEW and kind.takes_strong_view
    return own


@cache
def _combination(names: tuple[str, ...]) -> type[Distiller]:
    kinds = [DISTILLERS.find(name) for name in names]
    whole = PLUS.join(names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SetupError(f"DISTILLER {whole!r}: {twice!r} is listed twice; leave one out.")
    for name, kind in zip(names, kinds, strict=True):
        if not kind.needs_teacher:
            raise SetupError(f"DISTILLER {whole!r}: {name!r} is a method without a teacher; leave it out.")
        if kind.reuses_classifier:
            raise SetupError(
                f"DISTILLER {whole!r}: the student of {name!r} has no classifier and no map of its own that another "
                f"method could train. Set DISTILLER {name}."
            )
    attributes = {
        "__doc__": f"``{whole}``.",
        "names": names,
        "compares_logits": any(kind.compares_logits for kind in kinds),
        "takes_strong_view": any(kind.takes_strong_view for kind in kinds),
    }
    return type("Several", (Several,), attributes)
