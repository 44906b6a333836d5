"""Knowledge distillation by softened logits (Hinton et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_det.losses._checks import check_logits, check_temperature, reduced, reduction_scale
from kd_det.losses._closed_form import ClosedFormLoss, softmax_pair_, stack_pair


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, reduction: str = "mean"
) -> Tensor:
    """T² KL(p ‖ q) per sample, with p = softmax(teacher_logits / T) and q = softmax(student_logits / T).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. The plain formula:
    ``textbook.kd``.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        temperature: T, from 1e-6 to 1e6.
        reduction: "none", "mean" or "sum" over the samples.

    Returns:
        (B,) for "none", else a scalar. Precision, range and derivatives: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype, device or setting other than these.
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    scale = reduction_scale(reduction, student_logits.shape[0])
    loss: Tensor = _KD.apply(student_logits, teacher_logits.detach(), temperature, scale, reduction)
    return loss


class _KD(ClosedFormLoss):
    """``s`` and ``t`` are the student's and the teacher's logits. The gradient with respect to s is T (q − p)."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, temperature: float, scale: float, reduction: str) -> Tensor:
        pair = stack_pair(s, t)
        # Shifted before the division, whose rounding would lose small differences of logits in the thousands.
        pair.sub_(pair.amax(2, keepdim=True)).mul_(1 / temperature)
        q, p, divergence, _, gradient = softmax_pair_(pair)
        torch.sub(q, p, out=gradient).mul_(temperature * scale)
        ctx.save_for_backward(s, gradient)
        return reduced(divergence.mul_(temperature**2 * scale), reduction)
