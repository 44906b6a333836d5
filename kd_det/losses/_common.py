"""What every loss on logits does first and last: check its arguments, widen its inputs, reduce its result."""

from __future__ import annotations

import math

import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def check_logits(student: Tensor, teacher: Tensor, minimum_classes: int = 1) -> None:
    """Raises ``ValueError`` unless both are floating (B, C) of one shape, C at least ``minimum_classes``."""
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher logits must both be (B, C), got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ValueError(f"logits must be floating point, got {student.dtype} and {teacher.dtype}")
    if student.shape[1] < minimum_classes:
        raise ValueError(f"logits of {student.shape[1]} classes; at least {minimum_classes} are needed")


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Raises ``ValueError`` unless ``labels`` is int64 (B,) with values in 0..C-1.

    The values are looked at on the CPU only: elsewhere that would wait for the device at every step, and indexing with
    a label out of range stops there anyway.
    """
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels must be int64 ({logits.shape[0]},), got {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and labels.numel():
        low, high = torch.aminmax(labels)
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"labels must be in 0..{logits.shape[1] - 1}, got {int(low)}..{int(high)}")


def check_positive(name: str, value: float) -> None:
    """Raises ``ValueError`` unless ``value`` is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def check_weight(name: str, value: float) -> None:
    """Raises ``ValueError`` unless ``value`` is a finite number, 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value}")


def check_reduction(reduction: str) -> None:
    """Raises ``ValueError`` for a reduction that torch does not have either."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def working_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """The wider of the two dtypes, and at least float32."""
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)


def reduce(per_sample: Tensor, reduction: str) -> Tensor:
    """(B,) to (B,) for "none", a scalar for "mean" and "sum"; the mean of an empty batch is 0, with its graph."""
    if reduction == "none":
        return per_sample
    if reduction == "sum" or per_sample.numel() == 0:
        return per_sample.sum()
    return per_sample.mean()
