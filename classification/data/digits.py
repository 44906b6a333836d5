"""scikit-learn's 1,797 scans of handwritten digits: the data set that every installation has."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate

from classification.data.contents import ImagesInMemory, MemoryData

VAL_SCANS = 360
# Of the training split, pixels from 0 to 1; the three channels are equal.
MEAN = (0.3054,) * 3
STD = (0.3237,) * 3


def read_digits() -> MemoryData:
    """1,437 scans for training and 360 for validation, stratified by class, always the same ones.

    The scans, 8 x 8 with 17 levels of ink, are enlarged bilinearly to 32 x 32, ink white.
    """
    digits = load_digits()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, val = train_test_split(np.arange(len(labels)), test_size=VAL_SCANS, stratify=digits.target, random_state=0)
    images = _enlarge(torch.from_numpy(digits.images))
    splits = [
        ImagesInMemory(images[chosen], labels[chosen]) for chosen in map(torch.from_numpy, map(np.sort, (train, val)))
    ]
    return MemoryData(*splits, tuple(str(digit) for digit in range(10)), MEAN, STD, mirror=False)


def _enlarge(scans: Tensor) -> Tensor:
    """(N, 8, 8) of 0 to 16, to uint8 (N, 3, 32, 32)."""
    # The weights are multiples of 1/64, so everything up to the rounding is exact: the same bytes everywhere.
    grey = interpolate(scans.double().unsqueeze(1), scale_factor=4, mode="bilinear", align_corners=False) * 255 / 16
    return grey.round().to(torch.uint8).expand(-1, 3, -1, -1)
