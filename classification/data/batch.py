"""What the loaders give and the distillers take."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B samples on the training device."""

    images: Tensor  # (B, 3, H, W) float32, normalised
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64: each sample's place in its data set, the same in every epoch
