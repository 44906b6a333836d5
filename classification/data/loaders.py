"""Training and evaluation batches of one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from classification.data.batch import Batch
from classification.data.order import epoch_order, eval_shares, train_shares


class Source(Protocol):
    """Where samples come from. ``batches`` holds the indices, int64 (B,), of each batch wanted."""

    labels: Tensor

    def __len__(self) -> int: ...

    def augmented(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]: ...

    def plain(self, batches: Sequence[Tensor]) -> Iterator[Batch]: ...


class EvalLoader:
    """Each sample once over all processes, in the data set's order, prepared as for evaluation.

    Args:
        batch_size: over all processes.
    """

    def __init__(self, source: Source, batch_size: int, process: int = 0, processes: int = 1) -> None:
        self._source, self._batch_size = source, batch_size
        self._shares = eval_shares(len(source), batch_size, process, processes)

    @property
    def samples(self) -> int:
        """Samples over all processes."""
        return len(self._source)

    @property
    def rounds(self) -> int:
        """Batches over all processes; of the last one, a process may get none."""
        return -(-len(self._source) // self._batch_size)

    def __len__(self) -> int:
        """This process's batches."""
        return len(self._shares)

    def __iter__(self) -> Iterator[Batch]:
        everything = torch.arange(len(self._source))
        return self._source.plain([everything[share] for share in self._shares])


class TrainLoader:
    """Epochs of shuffled, augmented batches; each is a function of the seed, the epoch and the batch alone.

    The batches of all processes joined are those of a single process, except in the last batch of an epoch: see
    :func:`classification.data.order.train_shares`.

    Args:
        batch_size: over all processes; divisible by ``processes``.
        eval_batch_size: of :meth:`plain`.
        seed: of the order.
    """

    def __init__(
        self, source: Source, batch_size: int, eval_batch_size: int, seed: int, process: int = 0, processes: int = 1
    ) -> None:
        self._source, self._eval_batch_size, self._seed = source, eval_batch_size, seed
        self._shares = train_shares(len(source), batch_size, process, processes)

    @property
    def samples(self) -> int:
        """Samples over all processes."""
        return len(self._source)

    @property
    def labels(self) -> Tensor:
        """int64 (samples,), on the training device, with the label noise if there is any."""
        return self._source.labels

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._shares)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's batches of ``epoch`` (from 0), from batch ``start`` on."""
        order = epoch_order(len(self._source), self._seed, epoch)
        return self._source.augmented(epoch, [order[share] for share in self._shares[start:]])

    def plain(self) -> Iterator[Batch]:
        """All training samples once, in every process all, in the data set's order, prepared as for evaluation."""
        return iter(EvalLoader(self._source, self._eval_batch_size))
