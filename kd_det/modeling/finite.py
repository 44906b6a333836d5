"""Stops at the first loss that is no number, and says which, when and on which images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch import distributed as dist

from kd_det.common.errors import NonFiniteLossError


def check_finite(losses: Mapping[str, Tensor], batched_inputs: list[dict[str, Any]]) -> None:
    """Raises ``NonFiniteLossError`` in every process if a loss is nan or infinite in any of them."""
    if not losses:
        return
    values = torch.stack([value.detach().float().reshape(()) for value in losses.values()])
    bad = (~torch.isfinite(values)).any()
    if not _in_any_process(bad):
        return
    named = {name: value.item() for name, value in losses.items() if not torch.isfinite(value)}
    raise _error_of_all(f"{named} is not finite {_where(batched_inputs)}" if named else "")


@contextmanager
def naming_the_batch(batched_inputs: list[dict[str, Any]], device: torch.device) -> Iterator[None]:
    """Adds iteration and images to the error that Detectron2's RPN raises for proposals that are no numbers.

    With several processes the others hear of it in ``check_finite``, which must follow: all of them raise it.
    """
    try:
        yield
    except FloatingPointError as error:
        _in_any_process(torch.tensor(True, device=device))
        raise _error_of_all(f"{error} {_where(batched_inputs)}") from error


def _in_any_process(flag: Tensor) -> bool:
    if comm.get_world_size() == 1:
        return bool(flag)
    flag = flag.to(torch.int32)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _error_of_all(ours: str) -> NonFiniteLossError:
    """The same error in every process, made of what the first faulty one says ("" where nothing is wrong)."""
    if comm.get_world_size() == 1:
        return NonFiniteLossError(ours)
    rank, text = next((rank, text) for rank, text in enumerate(comm.all_gather(ours)) if text)
    return NonFiniteLossError(f"process {rank}: {text}")


def _where(batched_inputs: list[dict[str, Any]]) -> str:
    images = [str(item.get("file_name", item.get("image_id", "unnamed"))) for item in batched_inputs]
    return f"at iteration {get_event_storage().iter} on the images {', '.join(images)}"
