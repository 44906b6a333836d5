"""L2 normalisation of rows of logits, with gradients that stay within bounds."""

from __future__ import annotations

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
