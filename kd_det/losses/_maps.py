"""What the losses on feature maps share: the checks of their arguments, and the mean squared error.

Shape legend: B images, C channels, H and W height and width of a map; a list of maps has one a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_det.losses._checks import FLOATS


def pair_levels(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The two maps of each level in the wider of their dtypes, at least float32; the teacher's detached.

    Raises:
        ValueError: no levels or another number of them on either side, or two maps of a level that are not float
            (B, C, H, W) of one shape, on one device, with C, H and W of 1 or more.
    """
    check_levels("student", student_maps)
    check_levels("teacher", teacher_maps)
    if [m.shape for m in student_maps] != [m.shape for m in teacher_maps]:
        raise ValueError(
            f"student and teacher need maps of the same shapes, level by level; got {describe(student_maps)} and "
            f"{describe(teacher_maps)} (teacher). Adapt the student's channels and sizes to the teacher's first."
        )
    return [_pair(level, s, t) for level, (s, t) in enumerate(zip(student_maps, teacher_maps, strict=True))]


def check_levels(side: str, maps: Sequence[Tensor]) -> None:
    """Raises ValueError unless ``maps`` is one or more float (B, C, H, W), with C, H and W of 1 or more."""
    if isinstance(maps, Tensor) or not maps:
        raise ValueError(f"the {side}'s maps must be a list of one or more (B, C, H, W); got {describe(maps)}.")
    if any(m.ndim != 4 or 0 in m.shape[1:] for m in maps):
        raise ValueError(f"the {side}'s maps must be (B, C, H, W), and not empty but for B; got {describe(maps)}.")
    if any(m.dtype not in FLOATS for m in maps):
        dtypes = ", ".join(str(m.dtype) for m in maps)
        raise ValueError(f"the {side}'s maps must be float16, bfloat16, float32 or float64; got {dtypes}.")


def check_level_device(level: int, s: Tensor, t: Tensor) -> None:
    """Raises ValueError unless the two maps of a level are on one device."""
    if s.device != t.device:
        raise ValueError(f"level {level}: the student's map is on {s.device}, the teacher's on {t.device}; move one.")


def describe(maps: Sequence[Tensor]) -> str:
    """The shapes of ``maps``, such as "2 maps, (1, 3, 8, 8) and (1, 3, 4, 4)"."""
    if isinstance(maps, Tensor):
        return f"one tensor {tuple(maps.shape)}"
    shapes = " and ".join(str(tuple(m.shape)) for m in maps)
    return f"{len(maps)} map{'s' * (len(maps) != 1)}" + f", {shapes}" * bool(maps)


def mean_squared_error(s: Tensor, t: Tensor) -> Tensor:
    """The mean of (s − t)²; for an empty batch a 0 that keeps the graph."""
    return F.mse_loss(s, t) if s.numel() else s.sum()


def to_loss_dtype(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes, at least float32; ``t`` detached."""
    dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
    return s.to(dtype), t.detach().to(dtype)


def pool_to_common_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, any D, H, W) brought to the smaller of their heights and widths by adaptive average pooling.

    A map that has that size already is returned as it is.
    """
    height, width = (min(lengths) for lengths in zip(s.shape[2:], t.shape[2:], strict=True))
    pooled = (m if m.shape[2:] == (height, width) else F.adaptive_avg_pool2d(m, (height, width)) for m in (s, t))
    return next(pooled), next(pooled)


def _pair(level: int, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    check_level_device(level, s, t)
    return to_loss_dtype(s, t)
