"""The data sets that are kept in memory: scikit-learn's digits, which every installation has, and CIFAR-100."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.datasets import CIFAR100

from kd_det.common.errors import SetupError

VAL_SCANS = 360
# Mean and standard deviation of the training split, pixels from 0 to 1. The digits' three channels are equal.
DIGITS_MEAN, DIGITS_STD = (0.3054,) * 3, (0.3237,) * 3
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class ImagesInMemory(NamedTuple):
    """The images of one split."""

    images: Tensor  # (N, 3, 32, 32) uint8
    labels: Tensor  # (N,) int64


class MemoryData(NamedTuple):
    """A data set that is kept in memory."""

    train: ImagesInMemory
    val: ImagesInMemory
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool  # whether a mirrored image still belongs to its class


def read_digits() -> MemoryData:
    """1,437 scans for training and 360 for validation, stratified by class, the same on every call.

    The scans, 8 x 8 with 17 levels of ink, are enlarged bilinearly to 32 x 32, with white ink.
    """
    digits = load_digits()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    indices = train_test_split(np.arange(len(labels)), test_size=VAL_SCANS, stratify=digits.target, random_state=0)
    images = _enlarge(torch.from_numpy(digits.images))
    chosen = [torch.from_numpy(np.sort(part)) for part in indices]
    train, val = (ImagesInMemory(images[places], labels[places]) for places in chosen)
    return MemoryData(train, val, tuple(str(digit) for digit in range(10)), DIGITS_MEAN, DIGITS_STD, mirror=False)


def _enlarge(scans: Tensor) -> Tensor:
    """(N, 8, 8) with values from 0 to 16, to uint8 (N, 3, 32, 32)."""
    # The weights are multiples of 1/64, so all is exact up to the rounding: the bytes are the same on every machine.
    grey = interpolate(scans.double().unsqueeze(1), scale_factor=4, mode="bilinear", align_corners=False) * 255 / 16
    return grey.round().to(torch.uint8).expand(-1, 3, -1, -1)


def read_cifar100(root: str) -> MemoryData:
    """CIFAR-100 below ``root``, downloaded if it is not there.

    Raises:
        SetupError: it is missing or damaged, and cannot be downloaded.
    """
    train, val = (_open(root, train=train) for train in (True, False))
    return MemoryData(_tensors(train), _tensors(val), tuple(train.classes), CIFAR_MEAN, CIFAR_STD, mirror=True)


def _open(root: str, *, train: bool) -> CIFAR100:
    try:
        return CIFAR100(root, train=train)
    except RuntimeError:  # torchvision's error for files that are missing or fail their checksum
        return _download(root, train=train)


def _download(root: str, *, train: bool) -> CIFAR100:
    try:
        os.makedirs(root, exist_ok=True)
        with FileLock(os.path.join(root, "cifar-100-python.lock")):  # one process downloads, the others wait for it
            return CIFAR100(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise SetupError(
            f"DATA.ROOT {root!r} has no intact cifar-100-python and it cannot be downloaded ({error}). Download "
            f"{CIFAR100.url} and unpack it there."
        ) from error


def _tensors(split: CIFAR100) -> ImagesInMemory:
    return ImagesInMemory(torch.from_numpy(split.data).permute(0, 3, 1, 2), torch.tensor(split.targets))
