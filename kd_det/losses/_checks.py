"""What the losses on logits share at either end: the checks of their arguments, and the reduction.

None of it makes the host wait for a device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Outside, softened distributions are one-hot or uniform to rounding, and T² leaves the range of float32.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6


def check_logits(s: Tensor, t: Tensor) -> None:
    """Raises ValueError unless ``s`` and ``t`` are float (B, C) of one shape, on one device, with C >= 2."""
    if s.shape != t.shape or s.ndim != 2 or s.shape[1] < 2:
        raise ValueError(
            "student and teacher logits must both be (B, C) with C >= 2; "
            f"got {tuple(s.shape)} and {tuple(t.shape)}. {_remedy(s, t)}"
        )
    if s.dtype not in FLOATS or t.dtype not in FLOATS:
        raise ValueError(
            f"logits must be float16, bfloat16, float32 or float64; got {s.dtype} and {t.dtype} (teacher)."
        )
    if s.device != t.device:
        raise ValueError(f"student logits are on {s.device}, the teacher's on {t.device}; move one.")


def _remedy(s: Tensor, t: Tensor) -> str:
    """What to do about logits of these shapes."""
    if s.ndim != t.ndim:
        return "Give both the same layout: one row a sample, one column a class."
    if s.ndim > 2:
        return "Flatten the positions into the batch: logits.movedim(1, -1).flatten(0, -2), and the labels alike."
    if s.ndim < 2:
        return "Add the dimension that is missing: one row a sample, one column a class."
    if s.shape[0] != t.shape[0]:
        return "Give both the same samples."
    if s.shape[1] != t.shape[1]:
        return "Give both models the same classes."
    return "Count the background, or what is not the class, as a class of its own."


def check_labels(y: Tensor, s: Tensor) -> None:
    """Raises ValueError unless ``y`` is int64 (B,) and on the device of the logits ``s`` (B, C).

    Their range is left to :func:`gather_targets`.
    """
    if y.ndim != 1 or y.shape[0] != s.shape[0]:
        raise ValueError(f"labels must be ({s.shape[0]},), one a row of the logits; got {tuple(y.shape)}.")
    if y.dtype != torch.int64:
        raise ValueError(f"labels must be int64 class indices; got {y.dtype}. Convert them with .long().")
    if y.device != s.device:
        raise ValueError(f"labels are on {y.device}, the logits on {s.device}; move them together.")


def gather_targets(logits: Tensor, index: Tensor) -> Tensor:
    """``logits.gather(-1, index)``; on the CPU, an index outside [0, C) raises ValueError.

    There gather itself looks at every index, so that labels in range pay nothing for the check. On an
    accelerator it would cost a synchronisation in each step; the device's own assertion in gather stops the
    run instead.
    """
    try:
        return logits.gather(-1, index)
    except (RuntimeError, IndexError):
        classes = logits.shape[-1]
        outside = index[(index < 0) | (index >= classes)]
        if outside.numel() == 0:
            raise
        raise ValueError(
            f"labels must be from 0 to {classes - 1}; got {int(outside[0])}. "
            "Leave out samples to be ignored, and count the background as a class where there is one."
        ) from None


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless ``temperature`` is a number from MIN_TEMPERATURE to MAX_TEMPERATURE."""
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise ValueError(f"temperature must be from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}; got {temperature!r}.")


def check_weight(name: str, weight: float) -> None:
    """Raises ValueError unless ``weight`` is a finite number, 0 or more."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} must be a finite number, 0 or more; got {weight!r}.")


def reduction_scale(reduction: str, batch: int) -> float:
    """The factor on each sample's loss: 1/B for "mean" (1 for an empty batch), 1 for "sum" and "none".

    Raises:
        ValueError: ``reduction`` is another word.
    """
    if reduction == "mean":
        return 1.0 / max(batch, 1)
    if reduction not in ("none", "sum"):
        raise ValueError(f'reduction must be "none", "mean" or "sum"; got {reduction!r}.')
    return 1.0


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Losses (B, 1), already times ``reduction_scale``: as (B,) for "none", else their sum."""
    return losses.squeeze(1) if reduction == "none" else losses.sum()
