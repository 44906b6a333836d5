"""Attention transfer (Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_det.losses._maps import (
    check_level_device,
    check_levels,
    describe,
    mean_squared_error,
    pool_to_common_size,
    to_loss_dtype,
)

# A map whose greatest activation is this or less passes no gradient: its own would be multiplied by its reciprocal.
MIN_ACTIVATION = 1e-4


def at_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, power: float = 2) -> Tensor:
    """Σ over levels of the mean squared difference of two normalised attention maps.

    The attention of a map A at a position is Σ_c |A_c|^p; over the positions it is divided by its Euclidean norm. So
    neither the number of channels nor a map's magnitude counts. Where a level's two maps differ in size, both are
    first brought to the smaller height and width by adaptive average pooling.

    A map that is 0 everywhere has an attention of 0. A map without an activation above 1e-4 passes no gradient.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2 with F = F²_sum and the squared
    norm. There a level's differences are summed over its positions and halved; a mean is what the weight of 1000 usual
    on CIFAR-100 belongs to.

    Args:
        student_maps: one or more (B, D, H, W), float16, bfloat16, float32 or float64.
        teacher_maps: as many, of the same batch; channels and sizes may be others. They get no gradient.
        power: p, 1 or more.

    Returns:
        A scalar, in the wider of the dtypes and at least float32; 0 with a graph for an empty batch. Finite for finite
        maps.

    Raises:
        ValueError: no maps, not the same number, batch and device on both sides, a dtype other than these, or a power
            below 1.
    """
    if not 1 <= power < math.inf:
        raise ValueError(f"power must be a finite number, 1 or more; got {power!r}.")
    _check_pairs(student_maps, teacher_maps)
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack([_level_loss(s, t, power) for s, t in pairs]).sum()


def _check_pairs(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> None:
    check_levels("student", student_maps)
    check_levels("teacher", teacher_maps)
    if [len(m) for m in student_maps] != [len(m) for m in teacher_maps]:
        raise ValueError(
            "student and teacher need as many maps, of the same batch; "
            f"got {describe(student_maps)} and {describe(teacher_maps)} (teacher)."
        )
    for level, (s, t) in enumerate(zip(student_maps, teacher_maps, strict=True)):
        check_level_device(level, s, t)


def _level_loss(s: Tensor, t: Tensor, power: float) -> Tensor:
    s, t = pool_to_common_size(*to_loss_dtype(s, t))
    return mean_squared_error(_attention(s, power), _attention(t, power))


def _attention(feature_map: Tensor, power: float) -> Tensor:
    """(B, D, H, W) to (B, H·W) of norm 1, or of 0 where the map is 0."""
    # The norm takes the scale away again: with a greatest activation of 1 no power overflows, and none vanishes.
    greatest = feature_map.detach().abs().amax((1, 2, 3), keepdim=True)
    scaled = feature_map / torch.where(greatest > 0, greatest, 1)
    raw = scaled.abs().pow(power).mean(1).flatten(1)
    attention = raw / torch.linalg.vector_norm(raw, dim=1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny)
    return torch.where(greatest.flatten(1) > MIN_ACTIVATION, attention, attention.detach())
