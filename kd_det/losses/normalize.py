"""Standardisation and L2 normalisation, with gradients that stay within bounds.

Both divide by a length. If the length is almost 0, the true gradient, 1 / length, would dominate all others: then no
gradient flows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kd_det.losses._checks import FLOATS

# No gradient flows through a standard deviation or a norm of this or less.
MIN_STD = MIN_NORM = 1e-4
# The squares of these, summed over the classes, stay within float32.
LARGEST = 1e15
# A row is divided by at least this norm.
EPS = 1e-12


def standardize_logits(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """(z − mean) / (std + eps) over the classes, with the unbiased standard deviation.

    Apply it to student and teacher logits before any loss on logits, and before its temperature. The student then
    matches the order and the relative gaps of the teacher's logits, but not their range.

    Equal logits give exactly 0. A row whose standard deviation is 1e-4 or less passes no gradient, as its gradient
    would be 1 / std times that of the loss. Of two classes only the sign of their difference is left, ±1/√2, with a
    gradient near 0: standardise three classes or more.

    Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024.

    Args:
        logits: (B, C) or (B, C, N), C >= 2 classes in dimension 1.
        eps: added to the standard deviation, above 0.

    Returns:
        The shape of ``logits``. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype or eps other than these.
    """
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (B, C) or (B, C, N) with C >= 2; got {tuple(logits.shape)}.")
    if logits.dtype not in FLOATS:
        raise ValueError(f"logits must be float16, bfloat16, float32 or float64; got {logits.dtype}.")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be a finite number above 0; got {eps!r}.")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return z_score(wide.clamp(-LARGEST, LARGEST), (1,), eps=eps, unbiased=True)


def z_score(values: Tensor, dims: tuple[int, ...], *, eps: float, unbiased: bool) -> Tensor:
    """(values − mean) / (std + eps) over ``dims``, of float32 or float64 values.

    Equal values along ``dims`` give exactly 0. Where their standard deviation is MIN_STD or less, no gradient flows.
    """
    if not values.numel():
        return values
    # The shift leaves exact zeros for equal values, and keeps the small differences of large values.
    first = values[tuple(slice(1) if dim in dims else slice(None) for dim in range(values.ndim))]
    shifted = values - first.detach()
    std, mean = torch.std_mean(shifted, dim=dims, correction=int(unbiased), keepdim=True)
    scaled = (shifted - mean) / (std + eps)
    return torch.where(std > MIN_STD, scaled, scaled.detach())


def unit_rows(logits: Tensor) -> Tensor:
    """``logits`` (..., C) divided by their L2 norm, at least float32. A row of zeros stays 0.

    Logits are clamped to ±LARGEST. Where the norm is MIN_NORM or less, no gradient flows.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).clamp(-LARGEST, LARGEST)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scaled = wide / norm.clamp_min(EPS)
    return torch.where(norm > MIN_NORM, scaled, scaled.detach())


def products(a: Tensor, b: Tensor) -> Tensor:
    """``a`` (..., M, C) times ``b`` (..., N, C) transposed: (..., M, N). Its gradients keep the dtype too.

    Those of a plain product would be in half precision if the backward pass runs under autocast.
    """
    result: Tensor = _Products.apply(a, b)
    return result


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with torch.autocast(a.device.type, enabled=False):
            return a @ b.mT

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        (gradient,) = grad_outputs
        with torch.autocast(a.device.type, enabled=False):
            return (
                gradient @ b if ctx.needs_input_grad[0] else None,
                gradient.mT @ a if ctx.needs_input_grad[1] else None,
            )
