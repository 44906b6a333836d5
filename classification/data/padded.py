"""A data set of small images on the training device, from which shifted and mirrored crops are cut by indexing."""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = 4  # black pixels around an image


class PaddedImages:
    """Images with a black border, and every crop of them as a view.

    With ``mirror``, each row is stored as border, image, border, mirrored image, border, so that a mirrored crop is a
    crop at another column and the whole augmentation one gathering copy. CIFAR-100's 50,000 images take 435 MiB so.

    Args:
        images: uint8 (N, 3, H, W).
        device: where they are kept.
        memory_format: of the crops.
        mirror: whether mirrored crops are drawn too.
    """

    def __init__(
        self, images: Tensor, device: torch.device, memory_format: torch.memory_format, *, mirror: bool
    ) -> None:
        count, channels, height, self.width = images.shape
        width, self.mirror = self.width, mirror
        columns = 2 * width + 3 * PADDING if mirror else width + 2 * PADDING
        shape = (count, channels, height + 2 * PADDING, columns)
        padded = torch.empty(shape, dtype=torch.uint8, device=device, memory_format=memory_format).zero_()
        rows = padded[:, :, PADDING : PADDING + height]
        rows[..., PADDING : PADDING + width] = images.to(device)
        if mirror:
            rows[..., 2 * PADDING + width : 2 * (PADDING + width)] = images.flip(-1).to(device)
        # (N, top, left, 3, H, W), a view: memory is only that of ``padded``.
        self.windows = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)

    def __len__(self) -> int:
        return self.windows.shape[0]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Top rows and left columns, int64 (N,) on the CPU, of one random crop of each image, half of them mirrored."""
        top = torch.randint(2 * PADDING + 1, (len(self),), generator=generator)
        left = torch.randint(2 * PADDING + 1, (len(self),), generator=generator)
        if self.mirror:
            mirrored = torch.randint(2, (len(self),), generator=generator, dtype=torch.bool)
            left = torch.where(mirrored, self.width + 3 * PADDING - left, left)
        return top, left

    def crops(self, indices: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """uint8 (B, 3, H, W): crop b is of image ``indices[b]`` from row ``top[b]``, column ``left[b]`` on."""
        return self.windows[indices, top, left]

    def whole(self, indices: Tensor) -> Tensor:
        """uint8 (B, 3, H, W): the images as they were given."""
        return self.windows[indices, PADDING, PADDING]
