"""What the readers of data sets give."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ImagesInMemory(NamedTuple):
    """One split: all its images."""

    images: Tensor  # (N, 3, 32, 32) uint8
    labels: Tensor  # (N,) int64


class ImagesOnDisk(NamedTuple):
    """One split: where its images are."""

    paths: list[str]
    labels: Tensor  # (N,) int64


class MemoryData(NamedTuple):
    """A data set that is kept in memory."""

    train: ImagesInMemory
    val: ImagesInMemory
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool  # whether a mirrored image is still of its class


class FileData(NamedTuple):
    """A data set of image files."""

    train: ImagesOnDisk
    val: ImagesOnDisk
    class_names: tuple[str, ...]
