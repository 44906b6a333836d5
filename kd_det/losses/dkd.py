"""Decoupled knowledge distillation (Zhao et al. 2022)."""

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
from kd_det.losses._pair import ClosedFormLoss, softmax_pair_, stack_pair

# A shifted logit to stand in for the target's where that is left out. Beside the greatest's exponential, which is 1,
# its own is nothing, in float64 as well; and it is no subnormal number, on which arithmetic is many times slower.
NEGLIGIBLE = -50.0


def dkd_loss(
    s: Tensor,
    t: Tensor,
    y: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    reduction: str = "mean",
) -> Tensor:
    """T² (α TCKD + β NCKD) per sample.

    With p = softmax(t / T) and q = softmax(s / T), TCKD is the KL divergence between the two-way
    distributions of p and q (the target's probability, and the rest), and NCKD that between p and q
    renormalised over the C − 1 other classes, 0 where C = 2. KL(p ‖ q) = TCKD + (1 − p_y) NCKD.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, eq. 4 to 7. For
    CIFAR-100 the paper takes T = 4, α = 1 and β from 2 to 8; for COCO T = 1, α = 1, β = 0.25, the background
    being a class.

    Args:
        s: student logits (B, C), C >= 2, float16, bfloat16, float32 or float64.
        t: teacher logits (B, C), any of these dtypes. They get no gradient.
        y: target classes (B,), int64, from 0 to C − 1. On the CPU others raise ValueError; on an accelerator
            its own assertion stops the run, as looking at them here would make every step wait.
        alpha: α, the weight of TCKD, 0 or more.
        beta: β, the weight of NCKD, 0 or more.
        temperature: T, from 1e-6 to 1e6.
        reduction: "none", "mean" or "sum" over the samples, as in torch. The mean of an empty batch is 0.

    Returns:
        (B,) for "none", else a scalar, in the wider of the two dtypes and at least float32: all is computed
        in that, under autocast too. The gradient has the dtype of ``s``. For finite logits the loss is
        finite; for a nan it is nan. Logits beyond 1e18 (in float64: 1e150), infinite ones too, count as that.
        The loss can be differentiated once; twice is a RuntimeError.

    Raises:
        ValueError: a shape, dtype, device, label or setting other than these.
    """
    check_logits(s, t)
    check_labels(y, s)
    check_weight("alpha", alpha)
    check_weight("beta", beta)
    check_temperature(temperature)
    scale = reduction_scale(reduction, s.shape[0])
    loss: Tensor = _DKD.apply(s, t.detach(), y, alpha, beta, temperature, scale, reduction)
    return loss


class _DKD(ClosedFormLoss):
    """With p̂ and q̂ renormalised over the others and δ = q_y − p_y, the gradient with regard to s is T α δ
    for the target and T (β (q̂_c − p̂_c) − α δ q̂_c) for another class c.

    For δ is the derivative of TCKD by the log-odds of the target, s_y / T − logsumexp of the others' s_c / T,
    and those have the derivative 1/T by s_y and −q̂_c/T by s_c.
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
        # Shifted before the division rounds: logits in the thousands keep their small differences.
        pair.sub_(greatest_other).mul_(1 / temperature).scatter_(2, index, NEGLIGIBLE)
        target.sub_(greatest_other).mul_(1 / temperature)
        q_hat, p_hat, nckd, rest, gradient = softmax_pair_(pair)

        # (2 ways, B, 1) each. The rest comes from the others' own logsumexp, not from 1 − p_y, which rounds
        # to 0.
        two_way = torch.stack((target, rest)).log_softmax(0)
        log_q, log_p = two_way.unbind(1)
        two_way_q, two_way_p = two_way.exp().unbind(1)
        tckd = log_p.sub_(log_q).mul_(two_way_p).sum(0)
        delta = (two_way_q - two_way_p)[0]

        # A q̂ and p̂ of −1 for the target make the others' formula give T α δ there.
        pair.scatter_(2, index, -1.0)
        torch.sub(q_hat, p_hat, out=gradient).mul_(beta * temperature * scale)
        gradient.addcmul_(q_hat, delta, value=-alpha * temperature * scale)
        ctx.save_for_backward(s, gradient)

        weight = temperature**2 * scale
        return reduced(nckd.mul_(beta * weight).add_(tckd, alpha=alpha * weight), reduction)
