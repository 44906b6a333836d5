"""Which samples a batch has, and which of them a process gets."""

from __future__ import annotations

import torch
from torch import Tensor

from classification.data.seeding import Purpose, generator


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The permutation, int64 (samples,), in which ``epoch`` goes through the training samples."""
    return torch.randperm(samples, generator=generator(Purpose.ORDER, seed, epoch))


def train_shares(samples: int, batch_size: int, process: int, processes: int) -> list[slice]:
    """The places in an epoch's order that this process gets, a slice for each batch.

    Batch b has the places from ``b * batch_size`` on, split into equal consecutive shares. The last batch has what is
    left: of that, what does not divide by ``processes`` is left out of the epoch, and so is the whole last batch where
    a share of it would be one sample, for which BatchNorm has no variance on a 1 x 1 map.

    Args:
        batch_size: samples of a batch over all processes; divisible by ``processes``.
    """
    whole, rest = divmod(samples, batch_size)
    sizes = [batch_size // processes] * whole
    if rest // processes > 1:
        sizes.append(rest // processes)
    starts = [batch * batch_size + process * size for batch, size in enumerate(sizes)]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def eval_shares(samples: int, batch_size: int, process: int, processes: int) -> list[slice]:
    """This process's samples of every batch in turn: over all processes each sample once.

    The shares of a batch differ by at most one sample; a batch of which this process gets none is left out.
    """
    shares = []
    for start in range(0, samples, batch_size):
        size = min(batch_size, samples - start)
        share = slice(start + size * process // processes, start + size * (process + 1) // processes)
        if share.start < share.stop:
            shares.append(share)
    return shares
