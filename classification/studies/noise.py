"""Noise of CIFAR-100's shape: what a step costs there, MCLD's queue of 50,000 x 100 included, without its images."""

from __future__ import annotations

import torch

from classification.data.small_images import CIFAR_MEAN, CIFAR_STD, ImagesInMemory, MemoryData

NOISE = "noise"  # as DATA.NAME, in the benchmark's own processes
CLASSES = 100
TRAIN_SAMPLES = 50_000
VAL_SAMPLES = 1
SHAPE = (3, 32, 32)


def noise() -> MemoryData:
    """50,000 training samples of 100 classes, always the same ones.

    They are not mirrored, so that they take half of CIFAR-100's memory: all kinds of steps are there at once.
    """
    return MemoryData(
        _split(TRAIN_SAMPLES), _split(VAL_SAMPLES), tuple(map(str, range(CLASSES))), CIFAR_MEAN, CIFAR_STD, mirror=False
    )


def _split(samples: int) -> ImagesInMemory:
    generator = torch.Generator().manual_seed(0)
    size = torch.Size(SHAPE).numel()
    # Each image is another stretch of the same noise: a view, which takes no memory.
    stream = torch.randint(256, (samples + size - 1,), generator=generator, dtype=torch.uint8)
    return ImagesInMemory(stream.unfold(0, size, 1).view(samples, *SHAPE), torch.arange(samples) % CLASSES)
