"""L2 normalisation of rows of logits, with gradients that stay within bounds, and the products of such rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A shorter row passes no gradient: it would be multiplied by 1 / norm.
MIN_NORM = 1e-4
EPS = 1e-12
# Their squares, summed over the classes, stay within float32.
LARGEST = 1e15


def unit_rows(logits: Tensor) -> Tensor:
    """``logits`` (..., C) over their L2 norm, at least float32; exactly 0 where a row is.

    Logits beyond LARGEST, infinite ones too, count as that. Where the norm is MIN_NORM or less, no gradient flows.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).clamp(-LARGEST, LARGEST)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scaled = wide / norm.clamp_min(EPS)
    return torch.where(norm > MIN_NORM, scaled, scaled.detach())


def products(a: Tensor, b: Tensor) -> Tensor:
    """``a`` (..., M, C) times ``b`` (..., N, C) transposed: (..., M, N), and its gradients, in their own dtype.

    For a backward pass that runs under autocast, too, which would take a plain product's to half precision.
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
