"""From images to network inputs: torchvision's transforms of single images, and the normalisation of a batch.

The transforms return uint8 tensors (3, H, W) and draw from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalization:
    """``(images / 255 - mean) / std`` as one multiplication and addition, on the device.

    Args:
        mean, std: one value for each channel, for pixels from 0 to 1.
        size: height and width of the images.
        device: the device of the images.
        memory_format: the memory format of the float images.
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
        # A whole image of each channel's number instead of a broadcast: the kernel then runs over contiguous memory.
        image = values.float().expand(1, -1, size, size)
        return image.contiguous(memory_format=self.memory_format).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, size, size) to float32 of the same shape."""
        floats = images.to(torch.float32, memory_format=self.memory_format)
        return torch.addcmul(self.shift, floats, self.scale, out=floats)


# The shorter side is resized to 256 pixels for a crop of 224.
RESIZE_RATIO = 256 / 224


def evaluation_transform(size: int) -> v2.Compose:
    """Resizes the shorter side to 256 / 224 of ``size``; takes the central ``size`` x ``size`` pixels."""
    return v2.Compose([_resize(size), v2.CenterCrop(size), v2.PILToTensor()])


def squashed_evaluation_transform(size: int) -> v2.Compose:
    """CUB-200's in the code of Wei et al. 2024: as ``evaluation_transform``, but both sides are resized."""
    return v2.Compose([_squash(size), v2.CenterCrop(size), v2.PILToTensor()])


def area_crop_transform(size: int, *, auto_augment: bool) -> v2.Compose:
    """ImageNet's training transform: a random rectangle of 8 to 100 % of the area, resized, randomly mirrored."""
    return _training(v2.RandomResizedCrop(size), auto_augment)


def squashed_crop_transform(size: int, *, auto_augment: bool) -> v2.Compose:
    """CUB-200's training transform in the code of Wei et al. 2024: resizes both sides to 256 / 224 of ``size``, which
    changes the proportions; takes a random square and mirrors it at random.
    """
    return _training(v2.Compose([_squash(size), v2.RandomCrop(size)]), auto_augment)


def auto_augment_small() -> v2.AutoAugment:
    """The policy that Cubuk et al. 2019 found on CIFAR-10."""
    return v2.AutoAugment(AutoAugmentPolicy.CIFAR10)


def _resize(size: int) -> v2.Resize:
    return v2.Resize(round(size * RESIZE_RATIO), InterpolationMode.BILINEAR)


def _squash(size: int) -> v2.Resize:
    return v2.Resize((round(size * RESIZE_RATIO),) * 2, InterpolationMode.BILINEAR)


def _training(crop: v2.Transform, auto_augment: bool) -> v2.Compose:
    policy = [v2.AutoAugment(AutoAugmentPolicy.IMAGENET)] if auto_augment else []
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *policy, v2.PILToTensor()])
