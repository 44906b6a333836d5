"""Zero mean and unit standard deviation, with gradients that stay within bounds."""

from __future__ import annotations

import torch
from torch import Tensor

# What varies less than this passes no gradient: it would be multiplied by 1 / std.
MIN_STD = 1e-4


def z_score(values: Tensor, dims: tuple[int, ...], *, eps: float, unbiased: bool) -> Tensor:
    """(values − mean) / (std + eps) over ``dims``, of float32 or float64 values.

    Where all values along ``dims`` are equal, it is exactly 0. Where their standard deviation is MIN_STD or less, no
    gradient flows.
    """
    if not values.numel():
        return values
    # The shift changes nothing but the rounding: equal values leave no residue to be blown up, and large ones keep
    # their small differences.
    first = values[tuple(slice(1) if dim in dims else slice(None) for dim in range(values.ndim))]
    shifted = values - first.detach()
    std, mean = torch.std_mean(shifted, dim=dims, correction=int(unbiased), keepdim=True)
    scaled = (shifted - mean) / (std + eps)
    return torch.where(std > MIN_STD, scaled, scaled.detach())
