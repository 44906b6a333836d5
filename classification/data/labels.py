"""Label noise, and the choice of training samples by the teacher's confidence (Zhao et al. 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from classification.data.loaders import TrainLoader
from classification.data.seeding import Purpose, generator
from kd_det.common.errors import SetupError


def add_label_noise(labels: Tensor, rate: float, num_classes: int, seed: int) -> Tensor:
    """A copy of ``labels``, int64 (N,), with symmetric noise (section 3.2, table 3).

    ``round(N * rate)`` of them get a different class, drawn uniformly. ``rate`` is from 0 to below 1. The same ``seed``
    gives the same labels, so that a teacher and its students see the same noise.
    """
    numbers = generator(Purpose.LABEL_NOISE, seed)
    changed = torch.randperm(len(labels), generator=numbers)[: round(len(labels) * rate)]
    steps = torch.randint(1, num_classes, (len(changed),), generator=numbers)
    noisy = labels.clone()
    noisy[changed] = (labels[changed] + steps) % num_classes
    return noisy


def confident_samples(
    train: TrainLoader, logits_of: Callable[[Tensor], Tensor], confidence_range: tuple[float, float]
) -> Tensor:
    """The training samples whose confidence ranks lie in ``confidence_range``: see ``rank_by_confidence``.

    Args:
        train: the training samples. Each is looked at once, prepared as for evaluation.
        logits_of: the teacher: images (B, 3, H, W) to logits (B, C).
        confidence_range: two fractions.

    Returns:
        bool (N,), by the samples' indices.
    """
    probabilities = torch.zeros(train.samples, dtype=torch.float64, device=train.labels.device)
    for batch in train.plain():
        classes = logits_of(batch.images).double().softmax(1)
        probabilities[batch.indices] = classes.gather(1, batch.labels.unsqueeze(1)).squeeze(1)
    return rank_by_confidence(probabilities, confidence_range)


def rank_by_confidence(probabilities_of_label: Tensor, confidence_range: tuple[float, float]) -> Tensor:
    """The samples whose ranks lie in a range of fractions, the most confident sample first (section 3.2,
    table 5).

    Adjacent ranges leave out no sample and share none. Of equal probabilities the lower index ranks first.

    Args:
        probabilities_of_label: (N,), the teacher's probability of each sample's label.
        confidence_range: (0.0, 0.5) is the more confident half.

    Returns:
        bool (N,), on the same device.

    Raises:
        SetupError: the range is not ``0 <= a < b <= 1``.
        ValueError: a probability is nan.
    """
    if len(confidence_range) != 2 or not 0 <= confidence_range[0] < confidence_range[1] <= 1:
        raise SetupError(
            f"DATA.CONFIDENCE_RANGE {tuple(confidence_range)} is not (a, b) with 0 <= a < b <= 1; "
            "(0.0, 0.5) is the more confident half, (0.0, 1.0) is all samples."
        )
    if probabilities_of_label.isnan().any():
        raise ValueError("the teacher's probabilities contain nan, which has no rank.")
    count = len(probabilities_of_label)
    first, last = (round(count * fraction) for fraction in confidence_range)
    chosen = probabilities_of_label.argsort(descending=True, stable=True)[first:last]
    mask = torch.zeros(count, dtype=torch.bool, device=probabilities_of_label.device)
    mask[chosen] = True
    return mask
