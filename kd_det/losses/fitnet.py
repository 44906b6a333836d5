"""Hints: plain regression of the teacher's features (Romero et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_det.losses._maps import mean_squared_error, pair_levels


def fitnet_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """The mean squared error of a map, averaged over the levels.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3, as a
    mean instead of half the sum.

    Args:
        student_maps: one or more (B, C, H, W), float16, bfloat16, float32 or float64, already adapted to the
            teacher's channels and sizes.
        teacher_maps: maps of the same shapes. They get no gradient.

    Returns:
        A scalar, in the wider of the dtypes and at least float32; 0 with a graph for an empty batch.

    Raises:
        ValueError: no maps, or not the same number, shapes and device on both sides; a dtype other than these.
    """
    return torch.stack([mean_squared_error(s, t) for s, t in pair_levels(student_maps, teacher_maps)]).mean()
