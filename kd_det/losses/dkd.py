"""Decoupled knowledge distillation (Zhao et al. 2022, "Decoupled Knowledge Distillation", CVPR, eq. 4-7).

With the log-odds ``a = log p_y / (1 - p_y)`` of the target, and p̂, q̂ the distributions over the C-1 other classes:

    TCKD = KL(Bernoulli(sigmoid(a_t)) ‖ Bernoulli(sigmoid(a_s)))      d TCKD / d a_s = sigmoid(a_s) - sigmoid(a_t)
    NCKD = KL(p̂ ‖ q̂)                                                 d NCKD / d z_c = q̂_c - p̂_c
    a = z_y - logsumexp of the other z                                d a / d z_y = 1, d a / d z_c = -q̂_c

so value and gradient need each class's exponential once and neither a mask nor a logarithm of a small difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from kd_det.losses._common import (
    check_labels,
    check_logits,
    check_positive,
    check_reduction,
    check_weight,
    reduce,
    working_dtype,
)


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
    """``T² (α TCKD + β NCKD)``, per sample.

    TCKD is the KL divergence of the two-way (target, rest) distributions; NCKD that of the distributions renormalised
    over the C-1 other classes, 0 where C = 2. ``KD = TCKD + (1 - p_y) NCKD``.

    Args:
        s: student logits (B, C), C >= 2, any floating dtype.
        t: teacher logits (B, C); receives no gradient.
        y: target classes (B,), int64, 0..C-1 (checked on the CPU; a GPU stops at an index out of range by itself).
        alpha: weight of TCKD, 0 or more.
        beta: weight of NCKD, 0 or more. The paper: 1-8 by the teacher's confidence; 0.25 in detection.
        temperature: T, above 0.
        reduction: "none", "mean" or "sum" over the samples, as in torch; the mean of an empty batch is 0.

    Returns:
        (B,) for "none", else a scalar; float32, or float64 if an input is. Finite for finite logits. It can be
        differentiated once.

    Raises:
        ValueError: shapes, dtypes, labels or settings that make no sense.
    """
    check_logits(s, t, minimum_classes=2)
    check_labels(y, s)
    check_weight("alpha", alpha)
    check_weight("beta", beta)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    per_sample = cast(Tensor, _DKD.apply(s, t, y.unsqueeze(1), alpha, beta, temperature))  # type: ignore[no-untyped-call]
    return reduce(per_sample, reduction)


class _Others(NamedTuple):
    """A network's classes other than the target, on the scale ``z = logits / T``.

    ``shifted`` (B, C): logits (not divided by T) minus the largest other one, -inf at the target; ``exps`` (B, C):
    exp(shifted / T); ``total`` (B, 1): their sum; ``log_total``: its logarithm; ``log_odds`` (B, 1): of the target.
    """

    shifted: Tensor
    exps: Tensor
    total: Tensor
    log_total: Tensor
    log_odds: Tensor


def _others(logits: Tensor, target: Tensor, temperature: float) -> _Others:
    shifted = logits.scatter(1, target, -torch.inf)
    largest = shifted.amax(dim=1, keepdim=True)
    shifted -= largest
    exps = (shifted / temperature).exp_()
    total = exps.sum(dim=1, keepdim=True)
    log_total = total.log()
    log_odds = (logits.gather(1, target) - largest).div_(temperature).sub_(log_total)
    return _Others(shifted, exps, total, log_total, log_odds)


class _DKD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, s: Tensor, t: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
    ) -> Tensor:
        dtype = working_dtype(s, t)
        ours, theirs = (_others(logits.to(dtype), target, temperature) for logits in (s, t))
        tckd, slope = _two_way(ours.log_odds, theirs.log_odds)
        gap = theirs.shifted.sub_(ours.shifted).scatter_(1, target, 0.0).mul_(theirs.exps).sum(dim=1, keepdim=True)
        nckd = (gap / theirs.total).div_(temperature).add_(ours.log_total).sub_(theirs.log_total)
        if ctx.needs_input_grad[0]:
            # T² from the loss, 1/T from z = s/T.
            gradient = ours.exps.mul_((beta - alpha * slope).div_(ours.total).mul_(temperature))
            gradient.addcmul_(theirs.exps, theirs.total.reciprocal_(), value=-beta * temperature)
            gradient.scatter_(1, target, slope.mul_(alpha * temperature))
            ctx.save_for_backward(gradient)
            ctx.dtype = s.dtype
        return (alpha * tckd + beta * nckd).mul_(temperature**2).squeeze(1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0].unsqueeze(1)).to(ctx.dtype), None, None, None, None, None


def _two_way(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """TCKD of the log-odds, and its derivative by ``ours``."""
    target, rest = theirs.sigmoid(), (-theirs).sigmoid()
    tckd = target * (logsigmoid(theirs) - logsigmoid(ours)) + rest * (logsigmoid(-theirs) - logsigmoid(-ours))
    # sigmoid(ours) - sigmoid(theirs), from the smaller of the two probabilities, where the difference is exact.
    slope = torch.where(theirs > 0, rest - (-ours).sigmoid(), ours.sigmoid() - target)
    return tckd, slope
