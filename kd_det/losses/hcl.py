"""The hierarchical context loss of knowledge review (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_det.losses._maps import mean_squared_error, pair_levels

# Side of the pooled map, and its weight beside the 1 of the map itself.
POOLINGS = ((4, 1 / 2), (2, 1 / 4), (1, 1 / 8))


def hcl_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Σ over levels of Σ_k w_k MSE_k / Σ_k w_k.

    MSE_k is the mean squared error of the maps themselves (w = 1) and of their average poolings to 4 × 4, 2 × 2 and
    1 × 1 (w = 1/2, 1/4, 1/8). A pooling is left out, and its weight too, unless it makes the map both lower and
    narrower: of a map 4 high or wide, or less, there is no 4 × 4, and of a 1 × 1 map just the error itself.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.

    Args:
        student_maps: one or more (B, C, H, W), float16, bfloat16, float32 or float64, largest first: what
            ``ReviewKDFusion`` returns.
        teacher_maps: maps of the same shapes. They get no gradient.

    Returns:
        A scalar, in the wider of the dtypes and at least float32; 0 with a graph for an empty batch.

    Raises:
        ValueError: no maps, or not the same number, shapes and device on both sides; a dtype other than these.
    """
    return torch.stack([_level_loss(s, t) for s, t in pair_levels(student_maps, teacher_maps)]).sum()


def _level_loss(s: Tensor, t: Tensor) -> Tensor:
    loss, total = mean_squared_error(s, t), 1.0
    for side, weight in POOLINGS:
        if side < min(s.shape[2:]):
            pooled = (F.adaptive_avg_pool2d(z, side) for z in (s, t))
            loss = loss + weight * mean_squared_error(*pooled)
            total += weight
    return loss / total
