"""Stops at the first loss that is no number, and says which, when and on which samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from classification.data.batch import Batch
from classification.progress import Progress
from kd_det.common.errors import NonFiniteLossError


def check_finite(losses: Mapping[str, Tensor], batch: Batch, progress: Progress, accelerator: Accelerator) -> None:
    """Raises ``NonFiniteLossError`` in every process if a loss is nan or infinite in any of them."""
    if not losses:
        return
    values = torch.stack([value.detach().float() for value in losses.values()])
    bad = (~torch.isfinite(values)).any().float()
    if not accelerator.reduce(bad, "sum"):
        return
    named = {name: value.item() for name, value in losses.items() if not torch.isfinite(value)}
    where = f"in epoch {progress.epoch + 1}, step {progress.step + 1}"
    if named:
        raise NonFiniteLossError(f"{named} is not finite {where}, samples {batch.indices.tolist()}")
    raise NonFiniteLossError(f"a loss is not finite in another process {where}")
