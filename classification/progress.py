"""How far a run is, and what it has measured: saved with every checkpoint, so that a resumed run reports the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Progress:
    """A run's place and its figures.

    ``sums`` are of the losses and of correct predictions over the samples of the epoch under way, float64;
    ``history`` has one record an epoch; ``seconds`` is each epoch's training time, the last one's so far.
    """

    epoch: int = 0
    step: int = 0  # within the epoch
    steps: int = 0  # in all
    samples: int = 0  # of the epoch under way, in this process
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=lambda: [0.0])

    def add(self, losses: dict[str, Tensor], correct: Tensor, samples: int) -> None:
        """Counts one micro-batch: its mean losses, how many predictions were right, and its size."""
        for name, value in {**{name: loss * samples for name, loss in losses.items()}, "correct": correct}.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.samples += samples

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Adds the epoch's record and goes on to the next."""
        self.history.append(record)
        self.epoch += 1
        self.step = self.samples = 0
        self.sums = {}
        self.seconds.append(0.0)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Progress:
        """What ``state`` gave, with the sums on ``device``."""
        progress = cls(**state)
        progress.sums = {name: value.to(device) for name, value in progress.sums.items()}
        return progress
