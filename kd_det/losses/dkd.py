"""Decoupled knowledge distillation, and its ablation with plain KD's coupled weight (Zhao et al. 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kd_det.losses._checks import (
    check_labels,
    check_logits,
    check_temperature,
    check_weight,
    gather_targets,
    reduced,
    reduction_scale,
)
from kd_det.losses._closed_form import LARGEST, ClosedFormLoss, softmax_pair_, stack_pair

# Replaces the target's shifted logit where the target is left out. Next to the largest exponential, 1, its exponential
# is lost to rounding even in float64. It is not subnormal: arithmetic on subnormal numbers is many times slower.
NEGLIGIBLE = -50.0


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    reduction: str = "mean",
) -> Tensor:
    """T² (α TCKD + β NCKD) per sample.

    With p = softmax(teacher_logits / T), q = softmax(student_logits / T) and the target y, TCKD is the KL divergence
    between the two-way distributions of p and q (the target's probability, and the rest). NCKD is the KL divergence
    between p and q renormalised over the C − 1 other classes; it is 0 for C = 2. Together they are plain KD: KL(p ‖ q)
    = TCKD + (1 − p_y) NCKD.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, eq. 4 to 7. The paper
    takes T = 4, α = 1 and β from 2 to 8 for CIFAR-100, and T = 1, α = 1 and β = 0.25 for COCO, where the background
    is a class. The plain formula: ``textbook.dkd``.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        labels: the target classes (B,), int64, from 0 to C − 1.
        alpha: α, the weight of TCKD, 0 or more.
        beta: β, the weight of NCKD, 0 or more.
        temperature: T, from 1e-6 to 1e6.
        reduction: "none", "mean" or "sum" over the samples.

    Returns:
        (B,) for "none", else a scalar. Precision, range and derivatives: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype, device, label or setting other than these.
    """
    check_logits(student_logits, teacher_logits)
    check_labels(labels, student_logits)
    check_weight("alpha", alpha)
    check_weight("beta", beta)
    check_temperature(temperature)
    scale = reduction_scale(reduction, student_logits.shape[0])
    loss: Tensor = _DKD.apply(
        student_logits, teacher_logits.detach(), labels, alpha, beta, temperature, scale, reduction
    )
    return loss


def coupled_dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 4.0,
    reduction: str = "mean",
) -> Tensor:
    """T² (α TCKD + (1 − p_y) NCKD) per sample, with p = softmax(teacher_logits / T).

    This is ``dkd_loss`` with the weight that NCKD has in plain KD, which is small for samples where the teacher is
    sure. With α = 1 it equals ``kd_loss``.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, eq. 6, and the row "1 − p_t" of
    the ablation of β. The plain formula: ``textbook.coupled_dkd``.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        labels: the target classes (B,), int64, from 0 to C − 1.
        alpha: α, the weight of TCKD, 0 or more.
        temperature: T, from 1e-6 to 1e6.
        reduction: "none", "mean" or "sum" over the samples.

    Returns:
        (B,) for "none", else a scalar. Precision, range and derivatives: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype, device, label or setting other than these.
    """
    check_logits(student_logits, teacher_logits)
    scale = reduction_scale(reduction, len(student_logits))
    inputs = student_logits, teacher_logits, labels
    tckd = dkd_loss(*inputs, alpha=alpha, beta=0.0, temperature=temperature, reduction="none")
    nckd = dkd_loss(*inputs, alpha=0.0, beta=1.0, temperature=temperature, reduction="none")
    losses = scale * (tckd + _rest(teacher_logits.detach().to(nckd.dtype), labels, temperature) * nckd)
    return losses if reduction == "none" else losses.sum()


def _rest(teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """1 − p_y (B,), as the sum of the other probabilities: 1 minus a p_y that rounds to 1 would be 0."""
    largest = LARGEST[teacher_logits.dtype]
    logits = teacher_logits.clamp(-largest, largest)
    p = ((logits - logits.amax(1, keepdim=True)) / temperature).softmax(1)
    return p.scatter(1, labels.unsqueeze(1), 0.0).sum(1)


class _DKD(ClosedFormLoss):
    """``s``, ``t`` and ``y`` are the student's logits, the teacher's logits and the labels.

    With p̂ and q̂ renormalised over the other classes and δ = q_y − p_y, the gradient with respect to s is T α δ for
    the target and T (β (q̂_c − p̂_c) − α δ q̂_c) for another class c. The reason: δ is the derivative of TCKD with
    respect to the target's log-odds, s_y / T − logsumexp of the others' s_c / T. The derivative of the log-odds is 1/T
    with respect to s_y and −q̂_c/T with respect to s_c.
    """

    @staticmethod
    def forward(
        ctx: Any,
        s: Tensor,
        t: Tensor,
        y: Tensor,
        alpha: float,
        beta: float,
        temperature: float,
        scale: float,
        reduction: str,
    ) -> Tensor:
        pair = stack_pair(s, t)
        index = y.unsqueeze(1).expand(2, -1, -1)
        target = gather_targets(pair, index)
        greatest_other = pair.scatter_(2, index, -math.inf).amax(2, keepdim=True)
        # Shifted before the division, whose rounding would lose small differences of logits in the thousands.
        pair.sub_(greatest_other).mul_(1 / temperature).scatter_(2, index, NEGLIGIBLE)
        target.sub_(greatest_other).mul_(1 / temperature)
        q_hat, p_hat, nckd, rest, gradient = softmax_pair_(pair)

        # (2 ways, B, 1) each. The rest is the logsumexp of the others: 1 − p_y would round to 0.
        two_way = torch.stack((target, rest)).log_softmax(0)
        log_q, log_p = two_way.unbind(1)
        two_way_q, two_way_p = two_way.exp().unbind(1)
        tckd = log_p.sub_(log_q).mul_(two_way_p).sum(0)
        delta = (two_way_q - two_way_p)[0]

        # With −1 for the target's q̂ and p̂, the formula for the others gives T α δ there.
        pair.scatter_(2, index, -1.0)
        torch.sub(q_hat, p_hat, out=gradient).mul_(beta * temperature * scale)
        gradient.addcmul_(q_hat, delta, value=-alpha * temperature * scale)
        ctx.save_for_backward(s, gradient)

        weight = temperature**2 * scale
        return reduced(nckd.mul_(beta * weight).add_(tckd, alpha=alpha * weight), reduction)
