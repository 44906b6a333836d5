"""Symmetric label noise, as in Zhao et al. 2022, section 4.2."""

from __future__ import annotations

import torch
from torch import Tensor

from classification.data.seeding import Purpose, generator
from kd_det.common.errors import SetupError


def add_label_noise(labels: Tensor, rate: float, num_classes: int, seed: int) -> Tensor:
    """A copy of ``labels``, int64 (N,), of which ``round(N * rate)`` are another class, drawn uniformly.

    Raises:
        SetupError: ``rate`` is not in [0, 1).
    """
    check_label_noise(rate)
    numbers = generator(Purpose.LABEL_NOISE, seed)
    changed = torch.randperm(len(labels), generator=numbers)[: round(len(labels) * rate)]
    steps = torch.randint(1, num_classes, (len(changed),), generator=numbers)
    noisy = labels.clone()
    noisy[changed] = (labels[changed] + steps) % num_classes
    return noisy


def check_label_noise(rate: float) -> None:
    """Raises a ``SetupError`` unless ``rate`` is in [0, 1)."""
    if not 0 <= rate < 1:
        raise SetupError(f"DATA.LABEL_NOISE {rate} is not a fraction from 0 to below 1; 0.2 changes every fifth label.")
