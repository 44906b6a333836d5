"""Models that see their images at another size than the data's."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F


def resize_inputs(model: nn.Module, size: int) -> None:
    """Makes ``model`` resize its images (B, 3, H, W) to ``size`` × ``size``, bilinearly; 0: leaves them.

    Its state dict stays as it is.
    """

    def resize(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *others = args
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return images, *others

    if size:
        model.register_forward_pre_hook(resize)
