"""CIFAR-100 by torchvision's reader."""

from __future__ import annotations

import os

import torch
from filelock import FileLock
from torchvision.datasets import CIFAR100

from classification.data.contents import ImagesInMemory, MemoryData
from kd_det.common.errors import SetupError

MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


def read_cifar100(root: str) -> MemoryData:
    """CIFAR-100 below ``root``, downloaded where it is not there.

    Raises:
        SetupError: it is not there, or damaged, and cannot be downloaded.
    """
    train, val = (_open(root, train=train) for train in (True, False))
    return MemoryData(_tensors(train), _tensors(val), tuple(train.classes), MEAN, STD, mirror=True)


def _open(root: str, *, train: bool) -> CIFAR100:
    try:
        return CIFAR100(root, train=train)
    except RuntimeError:  # torchvision's word for files that are missing or fail their checksum
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
