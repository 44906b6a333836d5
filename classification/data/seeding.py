"""Random numbers that are a function of their purpose, so that a resumed run has nothing to restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What random numbers are used for. It is the first word of their seed, so that no two purposes share a stream."""

    ORDER = 1
    CROPS = 2
    SAMPLE = 3
    LABEL_NOISE = 4
    STRONG_CROPS = 5
    STRONG_SAMPLE = 6


def seed_of(purpose: Purpose, *key: int) -> int:
    """A seed of 64 bits, well mixed, from ``purpose`` and ``key`` (integers from 0)."""
    return int(np.random.SeedSequence((int(purpose), *key)).generate_state(1, np.uint64)[0])


def generator(purpose: Purpose, *key: int) -> torch.Generator:
    """A CPU generator for ``purpose`` and ``key``. Its numbers do not depend on the training device."""
    return torch.Generator().manual_seed(seed_of(purpose, *key))


@contextmanager
def sample_random_numbers(seed: int, epoch: int, index: int, purpose: Purpose = Purpose.SAMPLE) -> Iterator[None]:
    """Within it, torch's global CPU generator is seeded for one sample in one epoch. Afterwards its state is restored.

    torchvision's transforms draw from that generator. GPU generators are not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(purpose, seed, epoch, index))
        yield
