"""Relational knowledge distillation (Park et al. 2019).

Shape legend: B samples, D features of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_det.losses._checks import FLOATS
from kd_det.losses._maps import to_loss_dtype

# Their squares, summed over the features, stay within float32.
LARGEST = 1e15
# What is shorter is divided by this instead of its own length: a gradient is multiplied by no more than 1e4.
MIN_DISTANCE = 1e-4


def rkd_distance_loss(s: Tensor, t: Tensor) -> Tensor:
    """The mean over the B² pairs of the Huber loss between the two networks' relative distances.

    The relative distance of a pair is ‖x_i − x_j‖ / μ, μ the mean of the B (B − 1) distances between different samples,
    1e-4 at the least. The Huber loss has δ = 1. Equal samples have a distance of 0, which passes no gradient.

    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, eq. 5 to 8, as a mean over all ordered
    pairs, a sample with itself among them (they cost 0), which is what the usual weight of 25 belongs to.

    Args:
        s: the student's features (B, D), float16, bfloat16, float32 or float64.
        t: the teacher's (B, D'), any of these dtypes. They get no gradient.

    Returns:
        A scalar, in the wider of the two dtypes and at least float32: all is computed in that, under autocast too. 0
        with a graph for B of 0 or 1. Finite for finite features; those beyond 1e15, infinite ones too, count as that.

    Raises:
        ValueError: a shape, dtype or device other than these.
    """
    s, t = _checked(s, t)
    return _mean_huber(_relative_distances(s), _relative_distances(t))


def rkd_angle_loss(s: Tensor, t: Tensor) -> Tensor:
    """The mean over the B³ triples of the Huber loss between the two networks' cosines of an angle.

    The cosine of the triple (i, j, k) is that of the angle at j: ⟨e_ij, e_kj⟩ with e_ij = (x_i − x_j) / ‖x_i − x_j‖,
    where a difference shorter than 1e-4 is divided by 1e-4. The Huber loss has δ = 1.

    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, eq. 9 and 10, as a mean over all ordered
    triples, those with a sample twice among them, which is what the usual weight of 50 belongs to.

    Memory: some multiples of B² (B + D) numbers.

    Args:
        s: the student's features (B, D), float16, bfloat16, float32 or float64.
        t: the teacher's (B, D'), any of these dtypes. They get no gradient.

    Returns:
        A scalar, in the wider of the two dtypes and at least float32: all is computed in that, under autocast too. 0
        with a graph for B of 0 or 1. Finite for finite features; those beyond 1e15, infinite ones too, count as that.

    Raises:
        ValueError: a shape, dtype or device other than these.
    """
    s, t = _checked(s, t)
    with torch.autocast(s.device.type, enabled=False):
        return _mean_huber(_cosines(s), _cosines(t))


def _checked(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    if s.ndim != 2 or t.ndim != 2 or len(s) != len(t) or 0 in (s.shape[1], t.shape[1]):
        raise ValueError(
            "student's and teacher's features must be (B, D) of one batch, D of 1 or more on either side; "
            f"got {tuple(s.shape)} and {tuple(t.shape)}."
        )
    if s.dtype not in FLOATS or t.dtype not in FLOATS:
        raise ValueError(
            f"features must be float16, bfloat16, float32 or float64; got {s.dtype} and {t.dtype} (teacher)."
        )
    if s.device != t.device:
        raise ValueError(f"the student's features are on {s.device}, the teacher's on {t.device}; move one.")
    s, t = to_loss_dtype(s, t)
    return s.clamp(-LARGEST, LARGEST), t.clamp(-LARGEST, LARGEST)


def _differences(features: Tensor) -> Tensor:
    """(B, B, D): [j, i] is x_i − x_j. Not by way of scalar products, in which near samples would cancel."""
    return features.unsqueeze(0) - features.unsqueeze(1)


def _relative_distances(features: Tensor) -> Tensor:
    """(B, B). ``vector_norm`` has the subgradient 0 where a norm is 0."""
    distances = torch.linalg.vector_norm(_differences(features), dim=2)
    pairs = max(len(features) * (len(features) - 1), 1)
    relative: Tensor = distances / (distances.sum() / pairs).clamp_min(MIN_DISTANCE)
    return relative


def _cosines(features: Tensor) -> Tensor:
    """(B, B, B): [j, i, k] is the cosine of the angle at j."""
    directions = F.normalize(_differences(features), dim=2, eps=MIN_DISTANCE)
    cosines: Tensor = directions @ directions.mT
    return cosines


def _mean_huber(s: Tensor, t: Tensor) -> Tensor:
    return F.smooth_l1_loss(s, t) if s.numel() else s.sum()
