"""Logit standardisation (Sun et al. 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_det.losses._checks import FLOATS
from kd_det.losses._z_score import z_score

# Their squares, summed over the classes, stay within float32.
LARGEST = 1e15


def standardize_logits(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """(z − mean) / (std + eps) over the classes, with the unbiased standard deviation.

    Applied to the student's and the teacher's logits before any loss of this package, ahead of the temperature: the
    student then matches the order and the relative gaps of the teacher's logits, and not their range.

    A row whose standard deviation is 1e-4 or less (all logits equal, above all) passes no gradient: its own would be
    1 / std times that of the loss. All logits equal give exactly 0. Of two classes only the sign of their difference is
    left: ±1/√2, with a gradient of next to nothing. Standardise where there are three classes or more.

    Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024.

    Args:
        logits: (B, C) or (B, C, N), C >= 2 classes in dimension 1; float16, bfloat16, float32 or float64.
        eps: added to the standard deviation, above 0.

    Returns:
        The shape of ``logits``, in float32 or, for float64, in float64, under autocast too. Finite for finite logits;
        those beyond 1e15, infinite ones too, count as that.

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
