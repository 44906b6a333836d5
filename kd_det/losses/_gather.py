"""Joins the batches of several processes, for the losses that compare with samples of all of them.

Shape legend: B samples of this process, A samples of all processes together, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


class GlobalBatch(NamedTuple):
    """The A samples of all processes, in the order of the processes; this process's start at ``first``."""

    logits: Tensor  # (A, C)
    labels: Tensor  # (A,) int64
    indices: Tensor  # (A,) int64
    first: int
    processes: int


def gather_batch(logits: Tensor, labels: Tensor, indices: Tensor) -> GlobalBatch:
    """Joins (B, C), (B,) and (B,) of every process. B may differ from process to process, and may be 0.

    Without torch.distributed, or with one process, they are returned unchanged. Otherwise every process must call
    this. It waits for the device once, because it needs the sizes. No gradient passes.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return GlobalBatch(logits, labels, indices, 0, 1)
    processes, rank = distributed.get_world_size(), distributed.get_rank()
    size = torch.tensor([logits.shape[0]], device=logits.device)
    sizes = [int(length) for length in _all_gather(size, processes)]
    integers = _gather_rows(torch.stack((labels, indices), 1), sizes)
    return GlobalBatch(_gather_rows(logits, sizes), integers[:, 0], integers[:, 1], sum(sizes[:rank]), processes)


def _gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """Joins ``rows`` (sizes[rank], D) of the processes. all_gather needs equal lengths, so they are padded."""
    padded = F.pad(rows.detach(), (0, 0, 0, max(sizes) - rows.shape[0])).contiguous()
    parts = _all_gather(padded, len(sizes))
    return torch.cat([part[:length] for part, length in zip(parts, sizes, strict=True)])


def _all_gather(tensor: Tensor, processes: int) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(processes)]
    distributed.all_gather(parts, tensor)
    return parts
