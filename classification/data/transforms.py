"""From images to network inputs: torchvision's transforms of single images, and the normalisation of a batch.

The transforms return uint8 tensors (3, H, W) and draw from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2
from torchvision.transforms.v2 import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What AutoAugment's shears, shifts and turns uncover, as in the implementation that Zhao et al. 2022 name (section A.4,
# DeepVoltaire/AutoAugment). torchvision's default is black.
GREY = [128.0, 128.0, 128.0]


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
    return v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=GREY)


class TwoViews:
    """A training transform and, stacked behind its image, the same one followed by ``StrongAugment``: (2, 3, H, W)."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform, self.strong = transform, StrongAugment()

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.stack([self.transform(image), self.strong(self.transform(image))])


class StrongAugment:
    """The strong view of Jin et al. 2023 (MLKD), after Sohn et al. 2020 (FixMatch): two changes and a grey square.

    Each change is one of 14, with a random strength. The square, of a side up to half the image's, is then drawn at a
    random place. Of uint8 images (3, H, W); it draws from torch's global generator.
    """

    GREY = (125, 123, 114)
    CHANGES: tuple[tuple[Callable[..., Tensor], float, float], ...] = (
        (lambda image, value: functional.autocontrast(image), 0, 1),
        (functional.adjust_brightness, 0.05, 0.95),
        (functional.adjust_saturation, 0.05, 0.95),
        (functional.adjust_contrast, 0.05, 0.95),
        (lambda image, value: functional.equalize(image), 0, 1),
        (lambda image, value: image, 0, 1),
        (lambda image, value: functional.posterize(image, int(value)), 4, 8),
        (functional.rotate, -30, 30),
        (functional.adjust_sharpness, 0.05, 0.95),
        (lambda image, value: _affine(image, shear_x=value), -0.3, 0.3),
        (lambda image, value: _affine(image, shear_y=value), -0.3, 0.3),
        (lambda image, value: image if value > 255 else functional.solarize(image, value), 0, 256),
        (lambda image, value: _affine(image, right=value), -0.3, 0.3),
        (lambda image, value: _affine(image, down=value), -0.3, 0.3),
    )

    def __call__(self, image: Tensor) -> Tensor:
        for number in torch.randint(len(self.CHANGES), (2,)).tolist():
            change, least, most = self.CHANGES[number]
            image = change(image, least + (most - least) * torch.rand(()).item())
        height, width = image.shape[1:]
        side, x, y = (torch.rand(3) * torch.tensor([width / 2, width, height])).tolist()
        top, left = int(max(0, y - side / 2)), int(max(0, x - side / 2))
        image = image.clone()
        image[:, top : int(top + side) + 1, left : int(left + side) + 1] = torch.tensor(self.GREY).view(3, 1, 1)
        return image


def _affine(
    image: Tensor, *, shear_x: float = 0.0, shear_y: float = 0.0, right: float = 0.0, down: float = 0.0
) -> Tensor:
    """``image`` sheared by these tangents, and moved by these shares of its size."""
    height, width = image.shape[1:]
    shear = [math.degrees(math.atan(tangent)) for tangent in (shear_x, shear_y)]
    move = [round(right * width), round(down * height)]
    return functional.affine(image, angle=0.0, translate=move, scale=1.0, shear=shear)


def _resize(size: int) -> v2.Resize:
    return v2.Resize(round(size * RESIZE_RATIO), InterpolationMode.BILINEAR)


def _squash(size: int) -> v2.Resize:
    return v2.Resize((round(size * RESIZE_RATIO),) * 2, InterpolationMode.BILINEAR)


def _training(crop: v2.Transform, auto_augment: bool) -> v2.Compose:
    policy = [v2.AutoAugment(AutoAugmentPolicy.IMAGENET, fill=GREY)] if auto_augment else []
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *policy, v2.PILToTensor()])
