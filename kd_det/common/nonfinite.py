"""Stops training at the first non-finite loss, in every process, and names the loss, the iteration and the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from kd_det.common.errors import NonFiniteLossError


def check_finite(losses: Mapping[str, Tensor], where: Callable[[], str]) -> None:
    """Checks that every loss is finite in every process of the default process group.

    Args:
        losses: scalars by name. Either every process gives some, or none does.
        where: describes the iteration and the samples of this process; called only for a non-finite loss.

    Raises:
        NonFiniteLossError: a loss is nan or infinite in any process. All processes raise the same error.
    """
    if not losses:
        return
    values = torch.stack([value.detach().float().reshape(()) for value in losses.values()])
    if not _in_any_process((~torch.isfinite(values)).any()):
        return
    named = {name: value.item() for name, value in losses.items() if not torch.isfinite(value)}
    raise _error_of_all(f"{named} is not finite {where()}" if named else "")


@contextmanager
def naming_the_batch(where: Callable[[], str], device: torch.device) -> Iterator[None]:
    """Adds ``where`` to the ``FloatingPointError`` that Detectron2's RPN raises for non-finite proposals.

    ``check_finite`` must follow: there the other processes learn of the error, and all of them raise it.
    """
    try:
        yield
    except FloatingPointError as error:
        _in_any_process(torch.tensor(True, device=device))
        raise _error_of_all(f"{error} {where()}") from error


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _in_any_process(flag: Tensor) -> bool:
    if _processes() == 1:
        return bool(flag)
    flag = flag.to(torch.int32)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _error_of_all(ours: str) -> NonFiniteLossError:
    """The same error in every process, from the first process whose text is not empty."""
    if _processes() == 1:
        return NonFiniteLossError(ours)
    texts = [""] * _processes()
    dist.all_gather_object(texts, ours)
    rank, text = next((rank, text) for rank, text in enumerate(texts) if text)
    return NonFiniteLossError(f"process {rank}: {text}")
