"""Losses on feature maps: FitNets, FGFI, PKD, attention transfer, and the hierarchical context loss of ReviewKD.

Shape legend: B images, C channels, H and W height and width of a map; a list of maps has one (B, C, H, W) per level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_det.losses._checks import check_maps, describe, to_loss_dtype
from kd_det.losses.normalize import z_score

# Added to a channel's standard deviation in pkd_loss.
PKD_EPS = 1e-6
# A map whose largest activation is this or less passes no gradient in at_loss, which would divide by it.
MIN_ACTIVATION = 1e-4
# Sides of the pooled maps in hcl_loss.
POOLINGS = (4, 2, 1)


def fitnet_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """The mean squared error of each level's maps, averaged over the levels.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3, as a
    mean instead of half the sum.

    Args:
        student_maps: one or more (B, C, H, W), already adapted to the teacher's channels and sizes.
        teacher_maps: maps of the same shapes.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision: see ``kd_det.losses``.

    Raises:
        ValueError: no maps; or maps that differ in number, shape or device between the two sides.
    """
    return torch.stack([_mean_squared_error(s, t) for s, t in _pair_equal_levels(student_maps, teacher_maps)]).mean()


def fgfi_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """1 / (2 N_p) Σ (s − t)² over the masked positions and the channels: fine-grained feature imitation.

    N_p is the number of masked positions, of all levels and images together.

    Source: Wang, Yuan, Zhang, Feng, "Distilling Object Detectors with Fine-Grained Feature Imitation", CVPR 2019,
    section 3. There the masked positions are those near an object's anchors.

    Args:
        student_maps: one or more (B, C, H, W), already adapted to the teacher's channels and sizes.
        teacher_maps: maps of the same shapes.
        masks: (B, H, W) bool, one for each level: True where the student is to imitate. Values outside the mask are
            ignored, even infinite ones.

    Returns:
        A scalar; 0 with a graph where nothing is masked. Precision: see ``kd_det.losses``.

    Raises:
        ValueError: no maps; maps that differ in number, shape or device between the two sides; masks that do not fit.
    """
    levels = _pair_equal_levels(student_maps, teacher_maps)
    _check_masks(masks, student_maps)
    errors = torch.stack([_masked_squares(s, t, mask) for (s, t), mask in zip(levels, masks, strict=True)])
    positions = torch.stack([mask.sum() for mask in masks]).sum()
    # Divided on the device: reading the number of positions would make the host wait in every step.
    return errors.sum() / (2 * positions.clamp(min=1))


def _masked_squares(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return (s - t).masked_fill(~mask.unsqueeze(1), 0.0).square().sum()


def _check_masks(masks: Sequence[Tensor], maps: Sequence[Tensor]) -> None:
    shapes = [(m.shape[0], *m.shape[2:]) for m in maps]
    if [tuple(mask.shape) for mask in masks] != shapes:
        raise ValueError(
            f"masks must be (B, H, W), one for each of the maps, which are {describe(maps)}; got {describe(masks)}."
        )
    if any(mask.dtype != torch.bool or mask.device != m.device for mask, m in zip(masks, maps, strict=True)):
        kinds = ", ".join(f"{mask.dtype} on {mask.device}" for mask in masks)
        raise ValueError(f"masks must be bool, on the device of the maps, {maps[0].device}; got {kinds}.")


def pkd_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Half the mean squared error of normalised maps, averaged over the levels: 1 − r, r the Pearson correlation.

    Each channel of a map is brought to zero mean and unit standard deviation over the batch and the positions. So its
    magnitude and offset do not matter, and half the mean squared error is 1 − r averaged over the channels.

    A channel whose standard deviation is 1e-4 or less (a constant one, or a 1 × 1 map of one image) passes no gradient,
    as its gradient would be 1 / std times that of the loss. A channel that is constant on one side costs 1/2; on both
    sides, 0.

    Source: Cao, Zhang, Gao, Cheng, Cheng, Cheng, "PKD: General Distillation Framework for Object Detectors via Pearson
    Correlation Coefficient", NeurIPS 2022, section 3. There the levels are summed, with weight 6 each for a two-stage
    teacher and student. Here the mean needs that weight times the number of levels.

    Args:
        student_maps: one or more (B, C, H, W), already adapted to the teacher's channels and sizes.
        teacher_maps: maps of the same shapes.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision: see ``kd_det.losses``.

    Raises:
        ValueError: no maps; or maps that differ in number, shape or device between the two sides.
    """
    levels = _pair_equal_levels(student_maps, teacher_maps)
    return torch.stack([_mean_squared_error(_standardized(s), _standardized(t)) / 2 for s, t in levels]).mean()


def _standardized(feature_map: Tensor) -> Tensor:
    return z_score(feature_map, (0, 2, 3), eps=PKD_EPS, unbiased=False)


def at_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, power: float = 2) -> Tensor:
    """Σ over levels of the mean squared difference of two normalised attention maps.

    The attention of a map A at a position is Σ_c |A_c|^p, divided by its Euclidean norm over the positions. So the
    number of channels and a map's magnitude do not matter. Where the two maps of a level differ in size, both are first
    brought to the smaller height and width by adaptive average pooling.

    The attention of a map of zeros is 0. A map without an activation above 1e-4 passes no gradient.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2 with F = F²_sum and the
    squared norm. There a level's differences are summed over its positions and halved; the weight of 1000, usual on
    CIFAR-100, belongs to a mean.

    Args:
        student_maps: one or more (B, C, H, W).
        teacher_maps: as many, of the same batch. Channels and sizes may differ.
        power: p, 1 or more.

    Returns:
        A scalar; 0 with a graph for an empty batch; finite for finite maps. Precision: see ``kd_det.losses``.

    Raises:
        ValueError: no maps; maps that differ in number, batch or device between the two sides; a power below 1.
    """
    if not 1 <= power < math.inf:
        raise ValueError(f"power must be a finite number, 1 or more; got {power!r}.")
    return torch.stack([_attention_error(s, t, power) for s, t in pair_levels(student_maps, teacher_maps)]).sum()


def _attention_error(s: Tensor, t: Tensor, power: float) -> Tensor:
    s, t = pool_to_common_size(s, t)
    return _mean_squared_error(_attention(s, power), _attention(t, power))


def _attention(feature_map: Tensor, power: float) -> Tensor:
    """(B, C, H, W) to (B, H·W) of norm 1, or of 0 where the map is 0."""
    # The norm removes the scale anyway. With a largest activation of 1, no power overflows and not all of them vanish.
    greatest = feature_map.detach().abs().amax((1, 2, 3), keepdim=True)
    scaled = feature_map / torch.where(greatest > 0, greatest, 1)
    raw = scaled.abs().pow(power).mean(1).flatten(1)
    attention = raw / torch.linalg.vector_norm(raw, dim=1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny)
    return torch.where(greatest.flatten(1) > MIN_ACTIVATION, attention, attention.detach())


def hcl_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Σ over levels of Σ_k w_k MSE_k / Σ_k w_k: the hierarchical context loss.

    MSE_k is the mean squared error of the maps themselves (w = 1) and of their average poolings to 4 × 4, 2 × 2 and
    1 × 1. A pooling counts only if its side is smaller than the map's height and width: a 4 × 9 map has no 4 × 4
    pooling, and a 1 × 1 map has none at all. The first pooling that counts has w = 1/2, each further one half of that
    before it.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3, with the weights of
    its code, which compares the pooling's side with the map's height alone.

    Args:
        student_maps: one or more (B, C, H, W), largest first, such as ``ReviewKDFusion`` returns.
        teacher_maps: maps of the same shapes.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision: see ``kd_det.losses``.

    Raises:
        ValueError: no maps; or maps that differ in number, shape or device between the two sides.
    """
    return torch.stack([_context_error(s, t) for s, t in _pair_equal_levels(student_maps, teacher_maps)]).sum()


def _context_error(s: Tensor, t: Tensor) -> Tensor:
    loss, total, weight = _mean_squared_error(s, t), 1.0, 1.0
    for side in POOLINGS:
        if side < min(s.shape[2:]):
            pooled = (F.adaptive_avg_pool2d(z, side) for z in (s, t))
            weight /= 2
            loss = loss + weight * _mean_squared_error(*pooled)
            total += weight
    return loss / total


def pool_to_common_size(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, any C, H, W), brought to the smaller height and width by adaptive average pooling.

    A map that has that size already is returned unchanged.
    """
    maps = student_map, teacher_map
    height, width = (min(lengths) for lengths in zip(*(m.shape[2:] for m in maps), strict=True))
    pooled = (m if m.shape[2:] == (height, width) else F.adaptive_avg_pool2d(m, (height, width)) for m in maps)
    return next(pooled), next(pooled)


def _pair_equal_levels(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The two maps of each level in the wider of their dtypes, at least float32; the teacher's detached.

    Raises:
        ValueError: no levels; or maps that differ in number, shape or device between the two sides.
    """
    check_maps("student_maps", student_maps)
    check_maps("teacher_maps", teacher_maps)
    if [m.shape for m in student_maps] != [m.shape for m in teacher_maps]:
        raise ValueError(
            "student_maps and teacher_maps must have the same shapes, level by level; "
            f"got {describe(student_maps)} and {describe(teacher_maps)} (teacher). "
            "Adapt the student's channels and sizes to the teacher's first."
        )
    return _pairs(student_maps, teacher_maps)


def pair_levels(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """As ``_pair_equal_levels``, for maps of one batch whose channels and sizes may differ.

    Raises:
        ValueError: no levels; or maps that differ in number, batch or device between the two sides.
    """
    check_maps("student_maps", student_maps)
    check_maps("teacher_maps", teacher_maps)
    if [len(m) for m in student_maps] != [len(m) for m in teacher_maps] or len({len(m) for m in student_maps}) > 1:
        raise ValueError(
            "student_maps and teacher_maps must be equal in number, and of one batch; "
            f"got {describe(student_maps)} and {describe(teacher_maps)} (teacher)."
        )
    return _pairs(student_maps, teacher_maps)


def _pairs(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    levels = list(zip(student_maps, teacher_maps, strict=True))
    for level, (s, t) in enumerate(levels):
        if s.device != t.device:
            raise ValueError(f"student_maps[{level}] is on {s.device}, teacher_maps[{level}] on {t.device}; move one.")
    return [to_loss_dtype(s, t) for s, t in levels]


def _mean_squared_error(s: Tensor, t: Tensor) -> Tensor:
    """The mean of (s − t)²; for an empty batch a 0 that keeps the graph."""
    return F.mse_loss(s, t) if s.numel() else s.sum()
