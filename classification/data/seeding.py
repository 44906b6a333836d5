"""Random numbers that are functions of what they are for, so that a resumed run has nothing to restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What random numbers are for: the first word of their seed, so that no two purposes share a stream."""

    ORDER = 1
    CROPS = 2
    SAMPLE = 3
    LABEL_NOISE = 4


def seed_of(purpose: Purpose, *key: int) -> int:
    """64 bits, well mixed, of ``purpose`` and ``key`` (integers from 0)."""
    return int(np.random.SeedSequence((int(purpose), *key)).generate_state(1, np.uint64)[0])


def generator(purpose: Purpose, *key: int) -> torch.Generator:
    """A CPU generator of its own for ``purpose`` and ``key``: its numbers are the same on every device."""
    return torch.Generator().manual_seed(seed_of(purpose, *key))


@contextmanager
def sample_random_numbers(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Within it, torch's global CPU generator is that of one sample in one epoch; afterwards it is as it was before.

    torchvision's transforms take their random numbers from there. Generators of GPUs are not touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(Purpose.SAMPLE, seed, epoch, index))
        yield
