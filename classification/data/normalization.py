"""Bytes to normalised floats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalization:
    """``(images / 255 - mean) / std`` as one multiplication and addition, on the device.

    Args:
        mean, std: of each channel, for pixels from 0 to 1.
        size: height and width of the images.
        memory_format: of the float images.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        self.memory_format = memory_format
        center = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
        spread = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
        self.scale = self._image(1 / (255 * spread), size, device)
        self.shift = self._image(-center / spread, size, device)

    def _image(self, values: Tensor, size: int, device: torch.device) -> Tensor:
        # A whole image of each channel's number, not a broadcast one: the kernel then runs over contiguous memory.
        image = values.float().expand(1, -1, size, size)
        return image.contiguous(memory_format=self.memory_format).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, size, size) to float32 of the same shape."""
        floats = images.to(torch.float32, memory_format=self.memory_format)
        return torch.addcmul(self.shift, floats, self.scale, out=floats)
