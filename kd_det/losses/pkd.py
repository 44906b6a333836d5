"""Feature mimicry by Pearson correlation (Cao et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_det.losses._maps import mean_squared_error, pair_levels
from kd_det.losses._z_score import z_score

EPS = 1e-6


def pkd_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Half the mean squared error of normalised maps, averaged over the levels: 1 − r, r the Pearson correlation.

    Each channel of a map is brought to zero mean and unit standard deviation over the batch and the positions, so that
    neither its magnitude nor its offset counts; half the mean squared error is then 1 − r averaged over the channels.

    A channel whose standard deviation is 1e-4 or less (constant, above all, as on a 1 × 1 map of one image) passes no
    gradient: its own would be 1 / std times that of the loss. Constant on one side only, it costs 1/2; on both, 0.

    Source: Cao, Zhang, Gao, Cheng, Cheng, Cheng, "PKD: General Distillation Framework for Object Detectors via Pearson
    Correlation Coefficient", NeurIPS 2022, section 3. There the levels are summed, with weight 6 each for a two-stage
    teacher and student; the mean needs that times the number of levels.

    Args:
        student_maps: one or more (B, C, H, W), float16, bfloat16, float32 or float64, already adapted to the
            teacher's channels and sizes.
        teacher_maps: maps of the same shapes. They get no gradient.

    Returns:
        A scalar, in the wider of the dtypes and at least float32; 0 with a graph for an empty batch.

    Raises:
        ValueError: no maps, or not the same number, shapes and device on both sides; a dtype other than these.
    """
    levels = pair_levels(student_maps, teacher_maps)
    return torch.stack([mean_squared_error(_normalized(s), _normalized(t)) / 2 for s, t in levels]).mean()


def _normalized(feature_map: Tensor) -> Tensor:
    return z_score(feature_map, (0, 2, 3), eps=EPS, unbiased=False)
