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
    bad = (~torch.isfinite(values)).any().to(torch.int32)
    if comm.get_world_size() > 1:
        dist.all_reduce(bad, op=dist.ReduceOp.MAX)
    if not bad:
        return
    named = {name: value.item() for name, value in losses.items() if not torch.isfinite(value)}
    if named:
        raise NonFiniteLossError(f"{named} is not finite {_where(batched_inputs)}")
    raise NonFiniteLossError(f"a loss is not finite in another process at iteration {get_event_storage().iter}")


@contextmanager
def naming_the_batch(batched_inputs: list[dict[str, Any]]) -> Iterator[None]:
    """Adds iteration and images to the error that Detectron2's RPN raises for proposals that are no numbers."""
    try:
        yield
    except FloatingPointError as error:
        raise NonFiniteLossError(f"{error} {_where(batched_inputs)}") from error


def _where(batched_inputs: list[dict[str, Any]]) -> str:
    images = [str(item.get("file_name", item.get("image_id", "unnamed"))) for item in batched_inputs]
    return f"at iteration {get_event_storage().iter} on the images {', '.join(images)}"
