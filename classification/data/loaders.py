"""Batches: the order of the samples, each process's share of a batch, and the loaders for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from classification.data.seeding import Purpose, generator


class Batch(NamedTuple):
    """B samples on the training device."""

    images: Tensor  # (B, 3, H, W) float32, normalised
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64: each sample's place in its data set, the same in every epoch
    strong: Tensor | None = None  # as ``images``: a second, strongly augmented view, with DATA.STRONG_VIEW


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of the training samples in ``epoch``: a permutation, int64 (samples,)."""
    return torch.randperm(samples, generator=generator(Purpose.ORDER, seed, epoch))


def train_shares(samples: int, batch_size: int, process: int, processes: int) -> list[slice]:
    """This process's positions in an epoch's order, a slice for each batch.

    Batch b has the positions from ``b * batch_size`` on, split into equal consecutive shares. The last batch has the
    rest of the samples. What does not divide by ``processes`` is left out of the epoch. The whole last batch is left
    out where a share would be one sample: BatchNorm has no variance for it on a 1 x 1 map.

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
    """This process's samples of every batch in turn; all processes together have each sample once.

    The shares of a batch differ by at most one sample. A batch of which this process has no sample is left out.
    """
    shares = []
    for start in range(0, samples, batch_size):
        size = min(batch_size, samples - start)
        share = slice(start + size * process // processes, start + size * (process + 1) // processes)
        if share.start < share.stop:
            shares.append(share)
    return shares


class Source(Protocol):
    """A source of samples. ``batches`` has the indices, int64 (B,), of each requested batch."""

    labels: Tensor

    def __len__(self) -> int: ...

    def augmented(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]: ...

    def plain(self, batches: Sequence[Tensor]) -> Iterator[Batch]: ...


class EvalLoader:
    """Batches for evaluation. All processes together see each sample once, in the data set's order.

    Args:
        batch_size: samples of a batch over all processes.
    """

    def __init__(self, source: Source, batch_size: int, process: int = 0, processes: int = 1) -> None:
        self._source, self._batch_size = source, batch_size
        self._shares = eval_shares(len(source), batch_size, process, processes)

    @property
    def samples(self) -> int:
        """The number of samples over all processes."""
        return len(self._source)

    @property
    def rounds(self) -> int:
        """The number of batches over all processes. A process may have no sample of the last one."""
        return -(-len(self._source) // self._batch_size)

    def __len__(self) -> int:
        """The number of this process's batches."""
        return len(self._shares)

    def __iter__(self) -> Iterator[Batch]:
        everything = torch.arange(len(self._source))
        return self._source.plain([everything[share] for share in self._shares])


class TrainLoader:
    """Epochs of shuffled, augmented batches. A batch depends only on the seed, the epoch and its position.

    The joined batches of all processes equal those of a single process, except for the last batch of an epoch: see
    ``train_shares``.

    Args:
        batch_size: samples of a batch over all processes; divisible by ``processes``.
        eval_batch_size: samples of a batch of ``plain``.
        seed: determines the order.
    """

    def __init__(
        self, source: Source, batch_size: int, eval_batch_size: int, seed: int, process: int = 0, processes: int = 1
    ) -> None:
        self._source, self._eval_batch_size, self._seed = source, eval_batch_size, seed
        self._shares = train_shares(len(source), batch_size, process, processes)

    @property
    def samples(self) -> int:
        """The number of samples over all processes."""
        return len(self._source)

    @property
    def labels(self) -> Tensor:
        """int64 (samples,), on the training device, label noise included."""
        return self._source.labels

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return len(self._shares)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's batches of ``epoch`` (from 0), from batch ``start`` on."""
        order = epoch_order(len(self._source), self._seed, epoch)
        return self._source.augmented(epoch, [order[share] for share in self._shares[start:]])

    def plain(self) -> Iterator[Batch]:
        """All training samples once in every process, in the data set's order, prepared as for evaluation."""
        return iter(EvalLoader(self._source, self._eval_batch_size))
