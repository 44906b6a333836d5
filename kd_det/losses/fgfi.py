"""Fine-grained feature imitation (Wang et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_det.losses._maps import describe, pair_levels


def fgfi_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """1 / (2 N_p) Σ over the masked positions, and over the channels, of (s − t)².

    N_p is the number of masked positions, of all levels and images together.

    Source: Wang, Yuan, Zhang, Feng, "Distilling Object Detectors with Fine-Grained Feature Imitation", CVPR 2019,
    section 3; there the masked positions are those near an object's anchors.

    Args:
        student_maps: one or more (B, C, H, W), float16, bfloat16, float32 or float64, already adapted to the
            teacher's channels and sizes.
        teacher_maps: maps of the same shapes. They get no gradient.
        masks: (B, H, W) bool, one a level: True where the student is to imitate. What is elsewhere does not matter,
            an infinite value neither.

    Returns:
        A scalar, in the wider of the dtypes and at least float32; 0 with a graph where nothing is masked.

    Raises:
        ValueError: no maps, or not the same number, shapes and device on both sides; a dtype other than these; masks
            that do not fit the maps.
    """
    levels = pair_levels(student_maps, teacher_maps)
    _check_masks(masks, student_maps)
    errors = torch.stack([_squared_error(s, t, mask) for (s, t), mask in zip(levels, masks, strict=True)])
    positions = torch.stack([mask.sum() for mask in masks]).sum()
    # On the device: to look at the number here would make every step wait.
    return errors.sum() / (2 * positions.clamp(min=1))


def _squared_error(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    difference = (s - t).masked_fill(~mask.unsqueeze(1), 0.0)
    return difference.square().sum()


def _check_masks(masks: Sequence[Tensor], maps: Sequence[Tensor]) -> None:
    shapes = [(m.shape[0], *m.shape[2:]) for m in maps]
    if [tuple(mask.shape) for mask in masks] != shapes:
        raise ValueError(
            f"masks must be (B, H, W), one for each of the maps, which are {describe(maps)}; got {describe(masks)}."
        )
    if any(mask.dtype != torch.bool or mask.device != m.device for mask, m in zip(masks, maps, strict=True)):
        kinds = ", ".join(f"{mask.dtype} on {mask.device}" for mask in masks)
        raise ValueError(f"masks must be bool, on the device of the maps, {maps[0].device}; got {kinds}.")
