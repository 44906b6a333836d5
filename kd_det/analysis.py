"""How sure a teacher is of its targets, and the beta of DKD that goes with it.

Pure PyTorch: it serves classifiers and detectors alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# (mean gap, beta). The betas are those of Zhao et al. 2022 for CIFAR-100 (T = 4): 2 for ResNet-56, 6 for WRN-40-2, 8
# for ResNet-32x4, the surer teacher the larger. The gaps are a scale of ours, in steps of 1.5, not the paper's figures.
ANCHORS = ((5.5, 2.0), (7.0, 6.0), (8.5, 8.0))
DETECTION_BETA = 0.25  # the paper's for Faster R-CNN on COCO, T = 1


def confidence_gap(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the target's logit stands above the largest of the others: ``z_t - z_max``.

    Args:
        logits: (B, C) floating point, C >= 2, not divided by a temperature.
        labels: (B,) int64, 0 to C - 1: the target of each row.

    Returns:
        (B,), float32 or wider; negative where the target is not the top class.

    Raises:
        ValueError: shapes, types or labels are others.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point (B, C) with C >= 2; got {logits.dtype} {tuple(logits.shape)}.")
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(logits)},); got {labels.dtype} {tuple(labels.shape)}.")
    if ((labels < 0) | (labels >= logits.shape[1])).any():
        raise ValueError(f"labels must be from 0 to {logits.shape[1] - 1}.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = labels[:, None]
    others = logits.scatter(1, target, -math.inf).amax(dim=1)
    return logits.gather(1, target).squeeze(1) - others


def suggested_beta(gap: float, anchors: Sequence[tuple[float, float]] = ANCHORS) -> float:
    """The beta of ``dkd_loss`` to start from, for a teacher with this mean ``confidence_gap``.

    Zhao et al. 2022 (guidance on beta in the supplement): the surer the teacher, the more its non-target classes are
    worth, and the larger beta may be; too large a beta costs correctness. The paper gives the direction, for
    classifiers; between the anchors we interpolate linearly, and beyond them stay at the last.

    Args:
        gap: mean of ``confidence_gap`` over a data set.
        anchors: (gap, beta) pairs, the gaps rising.

    Returns:
        beta, from the smallest of the anchors to the largest.

    Raises:
        ValueError: ``gap`` is not finite, or the anchors do not rise.
    """
    if not math.isfinite(gap):
        raise ValueError(f"the mean gap must be a finite number; got {gap}.")
    gaps, betas = zip(*anchors, strict=True)
    if list(gaps) != sorted(set(gaps)):
        raise ValueError(f"the anchors' gaps must rise; got {list(gaps)}.")
    if gap <= gaps[0]:
        return betas[0]
    for (low, low_beta), (high, high_beta) in pairwise(anchors):
        if gap <= high:
            return low_beta + (gap - low) / (high - low) * (high_beta - low_beta)
    return betas[-1]
