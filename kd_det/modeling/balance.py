"""Warns of a KD term that is many times as large as the detector's own losses.

Learning rates are chosen for losses of about 1, and gradients are often clipped: such a term determines nearly the
whole step, and the detector hardly learns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from detectron2.utils import comm
from torch import Tensor

logger = logging.getLogger(__name__)

ITERATIONS = 20
LARGEST_RATIO = 10.0  # a term's loss over the sum of the detector's own


class BalanceWatch:
    """Compares the terms' losses with the detector's own over the first iterations, and warns once.

    Every process sums over its own batches on its device. Only the main process warns, because the batches of all
    processes are drawn in the same way. The sums are read once, so that no step waits for the device.

    Args:
        weights: each term's ``KD.*.WEIGHT``; None for a term that has none.
        iterations: how many to average over.
    """

    def __init__(self, weights: Mapping[str, float | None], iterations: int = ITERATIONS) -> None:
        self.weights = dict(weights)
        self.iterations = iterations
        self._seen = 0
        self._sums: Tensor | None = None

    def note(self, own: Mapping[str, Tensor], terms: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Adds the losses of an iteration.

        Args:
            own: the detector's losses.
            terms: the losses of each term.
        """
        if self._seen >= self.iterations:
            return
        detector = _total(own)
        of_terms = [_total(part) if part else torch.zeros_like(detector) for part in map(terms.get, self.weights)]
        values = torch.stack([detector, *of_terms])
        self._sums = values if self._sums is None else self._sums + values
        self._seen += 1
        if self._seen == self.iterations:
            if comm.is_main_process():
                self._warn((self._sums / self.iterations).tolist())
            self._sums = None

    def _warn(self, means: list[float]) -> None:
        detector, *others = means
        for (name, weight), mean in zip(self.weights.items(), others, strict=True):
            if detector > 0 and mean > LARGEST_RATIO * detector:
                logger.warning(
                    "KD.TERMS: the loss of %r is %.3g on average over the first %d iterations, %.0f times the "
                    "sum of the detector's own losses (%.3g): the detector hardly learns. %s",
                    name, mean, self.iterations, mean / detector, detector, _remedy(name, weight, detector / mean),
                )  # fmt: skip


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.detach().float().reshape(()) for value in losses.values()]).sum()


def _remedy(name: str, weight: float | None, factor: float) -> str:
    if weight is None:
        return "Give it a smaller weight, or remove it from KD.TERMS."
    return f"Lower KD.{name.upper()}.WEIGHT from {weight:g} to {weight * factor:.1g}, where both are about equal."
