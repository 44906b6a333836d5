"""Training samples by the teacher's confidence, as in Zhao et al. 2022, section 4.1."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_det.common.errors import SetupError


def rank_by_confidence(probabilities_of_label: Tensor, confidence_range: tuple[float, float]) -> Tensor:
    """Which samples' ranks lie in a range of fractions, most confident first.

    Ranges that join leave out no sample and share none. Of equal probabilities the lower index ranks first.

    Args:
        probabilities_of_label: (N,), the teacher's probability of each sample's label.
        confidence_range: (0.0, 0.5) is the more confident half.

    Returns:
        bool (N,), on the same device.

    Raises:
        SetupError: the range is not ``0 <= a < b <= 1``.
        ValueError: a probability is nan.
    """
    check_confidence_range(confidence_range)
    if probabilities_of_label.isnan().any():
        raise ValueError("the teacher's probabilities hold nan, which has no rank.")
    count = len(probabilities_of_label)
    first, last = (round(count * fraction) for fraction in confidence_range)
    chosen = probabilities_of_label.argsort(descending=True, stable=True)[first:last]
    mask = torch.zeros(count, dtype=torch.bool, device=probabilities_of_label.device)
    mask[chosen] = True
    return mask


def check_confidence_range(confidence_range: tuple[float, float]) -> None:
    """Raises a ``SetupError`` unless it is two fractions ``0 <= a < b <= 1``."""
    if len(confidence_range) != 2 or not 0 <= confidence_range[0] < confidence_range[1] <= 1:
        raise SetupError(
            f"DATA.CONFIDENCE_RANGE {tuple(confidence_range)} is not (a, b) with 0 <= a < b <= 1; "
            "(0.0, 0.5) is the more confident half, (0.0, 1.0) all."
        )
