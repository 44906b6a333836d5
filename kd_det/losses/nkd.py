"""Normalized knowledge distillation (Yang et al. 2023)."""

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
from kd_det.losses._closed_form import ClosedFormLoss, softmax_, stack_pair
from kd_det.losses.dkd import NEGLIGIBLE


def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """−p¹_y log q¹_y − γ T² Σ_{c≠y} p̂_c log q̂_c per sample, y being the target.

    p¹ = softmax(teacher_logits) and q¹ = softmax(student_logits), always without a temperature. p̂ and q̂ are the
    softmax of teacher_logits / T and student_logits / T, renormalised over the C − 1 classes other than the target; the
    second part is 0 for C = 2. Both parts are cross-entropies, not divergences: if the student equals the teacher, the
    loss is not 0, and the first part still raises the target's probability.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, section 3. It takes γ = 1.5 and T = 1 on
    ImageNet. The plain formula: ``textbook.nkd``.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        labels: the target classes (B,), int64, from 0 to C − 1.
        gamma: γ, the weight of the other classes, 0 or more.
        temperature: T, from 1e-6 to 1e6.
        reduction: "none", "mean" or "sum" over the samples.

    Returns:
        (B,) for "none", else a scalar. Precision, range and derivatives: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype, device, label or setting other than these.
    """
    check_logits(student_logits, teacher_logits)
    check_labels(labels, student_logits)
    check_weight("gamma", gamma)
    check_temperature(temperature)
    scale = reduction_scale(reduction, student_logits.shape[0])
    loss: Tensor = _NKD.apply(student_logits, teacher_logits.detach(), labels, gamma, temperature, scale, reduction)
    return loss


class _NKD(ClosedFormLoss):
    """``s``, ``t`` and ``y`` are the student's logits, the teacher's logits and the labels.

    The gradient with respect to s is −p¹_y (1 − q¹_y) for the target and p¹_y q¹_c + γ T (q̂_c − p̂_c) for another
    class c. There q¹_c is 1 − q¹_y times the softmax over the others at T = 1, which is q̂_c if T is 1 too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        s: Tensor,
        t: Tensor,
        y: Tensor,
        gamma: float,
        temperature: float,
        scale: float,
        reduction: str,
    ) -> Tensor:
        pair = stack_pair(s, t)
        index = y.unsqueeze(1).expand(2, -1, -1)
        target = gather_targets(pair, index)
        greatest_other = pair.scatter_(2, index, -math.inf).amax(2, keepdim=True)
        target.sub_(greatest_other)
        pair.sub_(greatest_other).scatter_(2, index, NEGLIGIBLE)

        if temperature != 1:
            rest = pair.logsumexp(2, keepdim=True)
            q_rest = pair[0].softmax(1)
            pair.mul_(1 / temperature).scatter_(2, index, NEGLIGIBLE)
        # 0 in place of the target's NEGLIGIBLE: the target's p̂, the weight below, is tiny but not 0.
        buffer = pair[0].scatter(1, index[0], 0.0)
        log_normalizer = softmax_(pair)
        q_hat, p_hat = pair.unbind()
        if temperature == 1:
            rest, q_rest = log_normalizer, q_hat
        others = log_normalizer[0] - buffer.mul_(p_hat).sum(1, keepdim=True)

        # (2 ways, B, 1) each. The rest is the logsumexp of the others: 1 − p_y would round to 0.
        log_q, log_p = torch.stack((target, rest)).log_softmax(0).unbind(1)
        p_y = log_p[0].exp()
        pull = p_y * log_q[1].exp() * scale

        gradient = torch.sub(q_hat, p_hat, out=buffer).mul_(gamma * temperature * scale)
        gradient.addcmul_(q_rest, pull).scatter_(1, index[0], -pull)
        ctx.save_for_backward(s, gradient)

        loss = others.mul_(gamma * temperature**2 * scale).addcmul_(p_y, log_q[0], value=-scale)
        return reduced(loss, reduction)
