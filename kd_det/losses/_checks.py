"""Checks of the losses' arguments, their common dtype, and the reduction.

No check makes the host wait for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Beyond these, softened distributions round to one-hot or uniform, and T² leaves the range of float32.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6


def check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raises ValueError unless both are float (B, C) of one shape, on one device, with C >= 2."""
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2 or student_logits.shape[1] < 2:
        raise ValueError(
            "student_logits and teacher_logits must both be (B, C) with C >= 2; "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}. "
            f"{_remedy(student_logits, teacher_logits)}"
        )
    _check_dtypes("logits", student_logits, teacher_logits)
    check_one_device("logits", student_logits, teacher_logits)


def _remedy(student: Tensor, teacher: Tensor) -> str:
    """What to do about logits of these shapes."""
    if student.ndim != teacher.ndim:
        return "Give both the same layout: one row per sample, one column per class."
    if student.ndim > 2:
        return "Flatten the positions into the batch: logits.movedim(1, -1).flatten(0, -2), and flatten the labels too."
    if student.ndim < 2:
        return "Add the dimension that is missing: one row per sample, one column per class."
    if student.shape[0] != teacher.shape[0]:
        return "Give both the same samples."
    if student.shape[1] != teacher.shape[1]:
        return "Give both models the same classes."
    return "Count the background, or everything that is not the class, as a separate class."


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Raises ValueError unless ``labels`` is int64 (B,), on the device of ``logits`` (B, ...).

    :func:`gather_targets` checks their range.
    """
    if labels.ndim != 1 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels must be ({logits.shape[0]},), one for each row of the logits; got {tuple(labels.shape)}."
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 class indices; got {labels.dtype}. Convert them with .long().")
    if labels.device != logits.device:
        raise ValueError(f"labels are on {labels.device}, the logits on {logits.device}; move them together.")


def gather_targets(logits: Tensor, index: Tensor) -> Tensor:
    """``logits.gather(-1, index)``. On the CPU an index outside [0, C) raises ValueError.

    On the CPU gather checks every index itself, so our own check runs only after it has failed. On an accelerator the
    device's assertion in gather stops the run.
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
            "Leave out samples to be ignored, and count the background as a class if there is one."
        ) from None


def check_features(student_features: Tensor, teacher_features: Tensor) -> None:
    """Raises ValueError unless both are float (B, D), with the same B, any D of 1 or more, on one device."""
    shapes = student_features.shape, teacher_features.shape
    if any(len(shape) != 2 or shape[1] == 0 for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            "student_features and teacher_features must both be (B, D), with the same B and D of 1 or more; "
            f"got {tuple(shapes[0])} and {tuple(shapes[1])}."
        )
    _check_dtypes("features", student_features, teacher_features)
    check_one_device("features", student_features, teacher_features)


def check_maps(name: str, maps: Sequence[Tensor]) -> None:
    """Raises ValueError unless ``maps`` is one or more float (B, C, H, W), with C, H and W of 1 or more."""
    if isinstance(maps, Tensor) or not maps:
        raise ValueError(f"{name} must be a list of one or more (B, C, H, W); got {describe(maps)}.")
    if any(m.ndim != 4 or 0 in m.shape[1:] for m in maps):
        raise ValueError(f"{name} must be (B, C, H, W) with C, H and W of 1 or more; got {describe(maps)}.")
    if any(m.dtype not in FLOATS for m in maps):
        dtypes = ", ".join(str(m.dtype) for m in maps)
        raise ValueError(f"{name} must be float16, bfloat16, float32 or float64; got {dtypes}.")


def check_one_device(name: str, student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError unless both are on one device; ``name`` is what they are, such as "logits"."""
    if student.device != teacher.device:
        raise ValueError(f"student_{name} are on {student.device}, teacher_{name} on {teacher.device}; move one.")


def _check_dtypes(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.dtype not in FLOATS or teacher.dtype not in FLOATS:
        raise ValueError(
            f"{name} must be float16, bfloat16, float32 or float64; got {student.dtype} and {teacher.dtype} (teacher)."
        )


def describe(maps: Sequence[Tensor]) -> str:
    """The shapes of ``maps``, such as "2 maps, (1, 3, 8, 8) and (1, 3, 4, 4)"."""
    if isinstance(maps, Tensor):
        return f"one tensor {tuple(maps.shape)}"
    shapes = " and ".join(str(tuple(m.shape)) for m in maps)
    return f"{len(maps)} map{'s' * (len(maps) != 1)}" + f", {shapes}" * bool(maps)


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless ``temperature`` is a number from MIN_TEMPERATURE to MAX_TEMPERATURE."""
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise ValueError(f"temperature must be from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}; got {temperature!r}.")


def check_weight(name: str, weight: float) -> None:
    """Raises ValueError unless ``weight`` is a finite number, 0 or more."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} must be a finite number, 0 or more; got {weight!r}.")


def to_loss_dtype(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in the wider of their dtypes, at least float32; the teacher's is detached."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


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
    """Losses (B, 1), already times ``reduction_scale``: (B,) for "none", their sum otherwise."""
    return losses.squeeze(1) if reduction == "none" else losses.sum()
