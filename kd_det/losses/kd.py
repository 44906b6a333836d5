"""Knowledge distillation by softened logits (Hinton et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_det.losses._checks import check_logits, check_temperature, reduced, reduction_scale
from kd_det.losses._pair import ClosedFormLoss, softmax_pair_, stack_pair


def kd_loss(s: Tensor, t: Tensor, *, temperature: float = 4.0, reduction: str = "mean") -> Tensor:
    """T² KL(p ‖ q) per sample, with p = softmax(t / T) and q = softmax(s / T).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Args:
        s: student logits (B, C), C >= 2, float16, bfloat16, float32 or float64.
        t: teacher logits (B, C), any of these dtypes. They get no gradient.
        temperature: T, from 1e-6 to 1e6.
        reduction: "none", "mean" or "sum" over the samples, as in torch. The mean of an empty batch is 0.

    Returns:
        (B,) for "none", else a scalar, in the wider of the two dtypes and at least float32: all is computed
        in that, under autocast too. The gradient has the dtype of ``s``. For finite logits the loss is
        finite; for a nan it is nan. Logits beyond 1e18 (in float64: 1e150), infinite ones too, count as that.
        The loss can be differentiated once; twice is a RuntimeError.

    Raises:
        ValueError: a shape, dtype, device or setting other than these.
    """
    check_logits(s, t)
    check_temperature(temperature)
    scale = reduction_scale(reduction, s.shape[0])
    loss: Tensor = _KD.apply(s, t.detach(), temperature, scale, reduction)
    return loss


class _KD(ClosedFormLoss):
    """The gradient with regard to s is T (q − p)."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, temperature: float, scale: float, reduction: str) -> Tensor:
        pair = stack_pair(s, t)
        # Shifted before the division rounds: logits in the thousands keep their small differences.
        pair.sub_(pair.amax(2, keepdim=True)).mul_(1 / temperature)
        q, p, divergence, _, gradient = softmax_pair_(pair)
        torch.sub(q, p, out=gradient).mul_(temperature * scale)
        ctx.save_for_backward(s, gradient)
        return reduced(divergence.mul_(temperature**2 * scale), reduction)
