"""Relational knowledge distillation (Park et al. 2019).

Shape legend: B samples, D features of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_det.losses._checks import check_features, to_loss_dtype

# The squares of these, summed over the features, stay within float32.
LARGEST = 1e15
# A length is divided by at least this, so a gradient grows by at most 1e4.
MIN_DISTANCE = 1e-4


def rkd_distance_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The mean over the B² pairs of the Huber loss between the two networks' relative distances.

    The relative distance of a pair is ‖x_i − x_j‖ / μ, where μ is the mean of the B (B − 1) distances between different
    samples, at least 1e-4. The Huber loss has δ = 1. Equal samples have a distance of 0, which passes no gradient.

    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, eq. 5 to 8, as a mean over all ordered
    pairs. A sample paired with itself is among them and costs 0; the usual weight of 25 belongs to that mean.

    Args:
        student_features: (B, D).
        teacher_features: (B, any D).

    Returns:
        A scalar; 0 with a graph for B of 0 or 1. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype or device other than these.
    """
    s, t = _prepared(student_features, teacher_features)
    return _mean_huber(_relative_distances(s), _relative_distances(t))


def rkd_angle_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The mean over the B³ triples of the Huber loss between the two networks' cosines of an angle.

    The cosine of the triple (i, j, k) is the cosine of the angle at j: ⟨e_ij, e_kj⟩ with e_ij = (x_i − x_j) / ‖x_i −
    x_j‖. A difference shorter than 1e-4 is divided by 1e-4. The Huber loss has δ = 1.

    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, eq. 9 and 10, as a mean over all
    ordered triples. Those with one sample twice are among them; the usual weight of 50 belongs to that mean.

    Memory: a few times B² (B + D) numbers.

    Args:
        student_features: (B, D).
        teacher_features: (B, any D).

    Returns:
        A scalar; 0 with a graph for B of 0 or 1. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype or device other than these.
    """
    s, t = _prepared(student_features, teacher_features)
    with torch.autocast(s.device.type, enabled=False):
        return _mean_huber(_cosines(s), _cosines(t))


def _prepared(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    check_features(student_features, teacher_features)
    s, t = to_loss_dtype(student_features, teacher_features)
    return s.clamp(-LARGEST, LARGEST), t.clamp(-LARGEST, LARGEST)


def _differences(features: Tensor) -> Tensor:
    """(B, B, D): [j, i] is x_i − x_j. Close samples keep their difference, which scalar products would lose."""
    return features.unsqueeze(0) - features.unsqueeze(1)


def _relative_distances(features: Tensor) -> Tensor:
    """(B, B). The subgradient of ``vector_norm`` is 0 where a norm is 0."""
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
