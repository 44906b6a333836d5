"""Losses on relations: between samples (SP, PKT), between channels (NST), and between levels (KDSVD).

Shape legend: B samples, C channels, D features of a sample, H and W height and width of a map, k and n singular
vectors. A list of maps has one (B, C, H, W) per level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kd_det.losses._checks import check_features, describe, to_loss_dtype
from kd_det.losses.maps import pair_levels, pool_to_common_size
from kd_det.losses.normalize import LARGEST, MIN_NORM, products, unit_rows

# Added to norms and probabilities in pkt_loss, as the authors do.
PKT_EPS = 1e-7
# kdsvd_loss chooses among this many more vectors of the student than of the teacher.
EXTRA_VECTORS = 3


def sp_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Σ over levels of the mean squared difference of two B × B similarity matrices: similarity-preserving KD.

    With X (B, C·H·W) the flattened map, a matrix is X Xᵀ with each row divided by its L2 norm. So the sizes and the
    magnitude of the maps do not matter. The row of a sample of zeros is 0. The row of a student's sample whose norm is
    1e-4 or less passes no gradient.

    Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. The weight of 3000, usual on
    CIFAR-100, belongs to a mean over the B² entries. There the map is the last one before pooling.

    Args:
        student_maps: one or more (B, C, H, W).
        teacher_maps: as many, of the same batch. Channels and sizes may differ.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: no maps; or maps that differ in number, batch or device between the two sides.
    """
    return torch.stack([_similarity_error(s, t) for s, t in pair_levels(student_maps, teacher_maps)]).sum()


def _similarity_error(s: Tensor, t: Tensor) -> Tensor:
    batch = len(s)
    return (_similarities(s) - _similarities(t)).square().sum() / max(batch * batch, 1)


def _similarities(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) to (B, B), with rows of norm 1."""
    rows = feature_map.flatten(1).clamp(-LARGEST, LARGEST)
    if not len(rows):
        return rows.sum(1, keepdim=True).mT
    # The rows are normalised at the end, so factors on rows do not matter: these keep the squares in range.
    gram = products(unit_rows(rows), rows / _or_one(rows.detach().abs().amax()))
    gram = gram / _or_one(gram.detach().abs().amax(1, keepdim=True))
    similarities = unit_rows(gram)
    passes_gradient = torch.linalg.vector_norm(rows.detach(), dim=1, keepdim=True) > MIN_NORM
    return torch.where(passes_gradient, similarities, similarities.detach())


def _or_one(scale: Tensor) -> Tensor:
    """``scale`` as a divisor: 1 where it is 0."""
    return torch.where(scale == 0, 1, scale)


def nst_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Σ over levels of the squared MMD between the channels of two maps: neuron selectivity transfer.

    A channel, as a vector of H·W positions, is divided by its L2 norm. With the kernel k(a, b) = ⟨a, b⟩², the loss of a
    level is mean k(s, s') + mean k(t, t') − 2 mean k(s, t), each mean over the samples and over all pairs of channels.
    Where the two maps differ in size, both are first brought to the smaller height and width by adaptive average
    pooling. A channel of norm 1e-4 or less passes no gradient; one of zeros counts as a vector of zeros.

    Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv
    1707.01219, the polynomial kernel with d = 2 and c = 0. The weight of 50 is usual on CIFAR-100.

    Args:
        student_maps: one or more (B, C, H, W).
        teacher_maps: as many, of the same batch. Channels and sizes may differ.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: no maps; or maps that differ in number, batch or device between the two sides.
    """
    return torch.stack([_selectivity_error(s, t) for s, t in pair_levels(student_maps, teacher_maps)]).sum()


def _selectivity_error(s: Tensor, t: Tensor) -> Tensor:
    a, b = (unit_rows(z.flatten(2)) for z in pool_to_common_size(s, t))
    pairs = ((b, b, 1.0), (a, a, 1.0), (a, b, -2.0))
    return torch.stack([factor * _mean(products(x, y).square()) for x, y, factor in pairs]).sum()


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)


def pkt_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The mean over the B² pairs of p log(p / q): probabilistic knowledge transfer.

    With cos the cosine of two samples' features, q_ij is (1 + cos_ij) / 2 of the student's, divided by its sum over j,
    and p_ij that of the teacher's. 1e-7 is added to the norms, and to p and q in the logarithm. A sample whose
    features have a norm of 1e-4 or less passes no gradient.

    Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, with
    the cosine kernel. The weight of 30000, usual on CIFAR-100, belongs to a mean over the B² pairs.

    Args:
        student_features: (B, D).
        teacher_features: (B, any D).

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype or device other than these.
    """
    check_features(student_features, teacher_features)
    q, p = (_transition_probabilities(z) for z in to_loss_dtype(student_features, teacher_features))
    return _mean(p * ((p + PKT_EPS) / (q + PKT_EPS)).log())


def _transition_probabilities(features: Tensor) -> Tensor:
    """(B, D) to (B, B), with rows of sum 1."""
    clamped = features.clamp(-LARGEST, LARGEST)
    norm = torch.linalg.vector_norm(clamped, dim=1, keepdim=True)
    unit = clamped / (norm + PKT_EPS)
    unit = torch.where(norm > MIN_NORM, unit, unit.detach())
    kernel = (products(unit, unit) + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def kdsvd_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], k: int = 1) -> Tensor:
    """1/B Σ over consecutive levels of Σ (g_s − g_t)², g the relations of singular vectors: KD by SVD.

    A map, as a matrix (H·W, C), is compressed to right singular vectors of C entries: the teacher's to its first k, the
    student's to the first k + 3. The sign of a vector is arbitrary: the largest entry of the teacher's is made
    positive, so that the loss is the same on every machine. Each vector of the teacher is paired with the student's
    vector of the largest absolute cosine, whose sign is changed to match. The k vectors of either side are multiplied
    by the teacher's first k singular values, which are first divided by their norm. g_ij = exp(−(u_i − v_j)² / 8) for
    the entries of a vector u of a level and of the same-numbered vector v of the level before: (B, C, C', k).

    Singular values closer to each other than 1e-4 (or than 100 times the rounding of the largest) do not determine
    their vectors: the part of the gradient that rotates one into the other is left out.

    Source: Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
    with k = 1 and weight 1. One published version takes the rows of a map, (C·H, W), in place of its channels.

    Args:
        student_maps: two or more (B, C, H, W).
        teacher_maps: as many, of the same batch, level by level with the student's channels. Sizes may differ.
        k: 1 or more, and at most C and H·W of each of the teacher's maps and C of the student's.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: fewer than two maps; maps that differ in number, batch, channels or device between the two sides; a
            k other than these.
    """
    levels = pair_levels(student_maps, teacher_maps)
    if len(levels) < 2 or any(s.shape[1] != t.shape[1] for s, t in levels):
        raise ValueError(
            "student_maps and teacher_maps must be two levels or more, each with one number of channels; "
            f"got {describe(student_maps)} and {describe(teacher_maps)} (teacher)."
        )
    most = min(min(t.shape[1], t.shape[2] * t.shape[3]) for _, t in levels)
    if not 1 <= k <= most:
        raise ValueError(f"k must be from 1 to {most}, the channels or positions of a teacher's map; got {k!r}.")
    with torch.autocast(levels[0][0].device.type, enabled=False):
        vectors = [_aligned_vectors(s, t, k) for s, t in levels]
        errors = [
            (_relations(s, s_before) - _relations(t, t_before)).square().sum()
            for (s_before, t_before), (s, t) in pairwise(vectors)
        ]
    return torch.stack(errors).sum() / max(len(student_maps[0]), 1)


def _aligned_vectors(s: Tensor, t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, C, k) each: the student's and the teacher's vectors of a level, times the teacher's singular values."""
    s_matrix, t_matrix = (z.flatten(2).mT.clamp(-LARGEST, LARGEST) for z in (s, t))
    _, values, t_vectors = _svd(t_matrix)
    t_vectors, strengths = _with_fixed_signs(t_vectors[..., :k]), F.normalize(values[:, :k], dim=1).unsqueeze(1)
    s_vectors: Tensor = _FirstVectors.apply(s_matrix, k + EXTRA_VECTORS)
    cosines = s_vectors.detach().mT @ t_vectors
    best = cosines.abs().argmax(1, keepdim=True)
    turned = torch.zeros_like(cosines).scatter_(1, best, cosines.gather(1, best).sign())
    return products(s_vectors, turned.mT) * strengths, t_vectors * strengths


def _with_fixed_signs(vectors: Tensor) -> Tensor:
    """(B, C, k), with the sign of each vector such that its largest entry by absolute value is positive."""
    greatest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return torch.where(greatest < 0, -vectors, vectors)


def _relations(vectors: Tensor, before: Tensor) -> Tensor:
    """(B, C, k) and (B, C', k) to (B, C, C', k)."""
    return (-(vectors.unsqueeze(2) - before.unsqueeze(1)).square() / 8).exp()


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (B, M, r), the values (B, r) and V (B, N, r) of (B, M, N); nan where the matrix has a nan."""
    missing = matrix.isnan().flatten(1).any(1).view(-1, 1, 1)
    u, values, vh = torch.linalg.svd(matrix.nan_to_num(), full_matrices=False)
    return u, values, vh.mT.masked_fill(missing, math.nan)


class _FirstVectors(torch.autograd.Function):
    """The first n right singular vectors (B, N, n) of X (B, M, N).

    With X = U S Vᵀ, G the gradient of the vectors and A = VᵀG, the gradient of X is U S (F∘A + (F∘A)ᵀ) Vᵀ + U S⁻¹ Gᵀ (1
    − V Vᵀ), F_ij = 1 / (s_j² − s_i²). F_ij is 0 where s_i and s_j are too close, and S⁻¹ is 0 for singular values near
    0.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, n: int) -> Tensor:
        u, values, v = _svd(matrix)
        ctx.save_for_backward(u, values, v)
        return v[..., :n].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None]:
        u, values, v = ctx.saved_tensors
        (gradient,) = grad_outputs
        n = gradient.shape[2]
        nearest = (100 * torch.finfo(values.dtype).eps * values[:, :1]).clamp_min(MIN_NORM).unsqueeze(2)
        every, first = values.unsqueeze(2), values[:, :n].unsqueeze(1)
        apart = (first - every).abs() > nearest
        gaps = torch.where(apart, (first - every) * (first + every), math.inf)
        lengths = torch.where(first > nearest, first, math.inf)
        with torch.autocast(gradient.device.type, enabled=False):
            along = v.mT @ gradient
            turns = F.pad(along / gaps, (0, values.shape[1] - n))
            inside = every * (turns + turns.mT) @ v.mT
            outside = (gradient - v @ along) / lengths
            return u @ inside + u[..., :n] @ outside.mT, None
