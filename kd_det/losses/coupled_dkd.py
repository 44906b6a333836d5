"""The ablation of decoupled knowledge distillation that keeps plain KD's coupling (Zhao et al. 2022)."""

from __future__ import annotations

from torch import Tensor

from kd_det.losses._checks import check_logits, reduction_scale
from kd_det.losses._pair import LARGEST
from kd_det.losses.dkd import dkd_loss


def coupled_dkd_loss(
    s: Tensor, t: Tensor, y: Tensor, *, alpha: float = 1.0, temperature: float = 4.0, reduction: str = "mean"
) -> Tensor:
    """T² (α TCKD + (1 − p_y) NCKD) per sample, with p = softmax(t / T).

    ``dkd_loss`` with the weight of NCKD as plain KD has it: small for the samples of which the teacher is sure. With
    α = 1 it equals ``kd_loss``.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, eq. 6, and the ablation of β,
    where it is the row "1 − p_t" in place of a number.

    Args:
        s: student logits (B, C), C >= 2, float16, bfloat16, float32 or float64.
        t: teacher logits (B, C), any of these dtypes. They get no gradient.
        y: target classes (B,), int64, from 0 to C − 1, checked as by ``dkd_loss``.
        alpha: α, the weight of TCKD, 0 or more.
        temperature: T, from 1e-6 to 1e6.
        reduction: "none", "mean" or "sum" over the samples, as in torch. The mean of an empty batch is 0.

    Returns:
        As ``dkd_loss``.

    Raises:
        ValueError: a shape, dtype, device, label or setting other than these.
    """
    check_logits(s, t)
    scale = reduction_scale(reduction, len(s))
    tckd = dkd_loss(s, t, y, alpha=alpha, beta=0.0, temperature=temperature, reduction="none")
    nckd = dkd_loss(s, t, y, alpha=0.0, beta=1.0, temperature=temperature, reduction="none")
    losses = scale * (tckd + _rest(t.detach().to(nckd.dtype), y, temperature) * nckd)
    return losses if reduction == "none" else losses.sum()


def _rest(t: Tensor, y: Tensor, temperature: float) -> Tensor:
    """1 − p_y (B,), summed up from the others: what rounding would leave of it where p_y is almost 1 is not enough."""
    t = t.clamp(-LARGEST[t.dtype], LARGEST[t.dtype])
    p = ((t - t.amax(1, keepdim=True)) / temperature).softmax(1)
    return p.scatter(1, y.unsqueeze(1), 0.0).sum(1)
