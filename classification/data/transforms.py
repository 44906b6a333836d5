"""torchvision's transforms of single images: random numbers from torch's global generator, uint8 tensors out."""

from __future__ import annotations

from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

# Of 256 pixels of the shorter side, the middle or a random 224 are seen.
RESIZE_RATIO = 256 / 224


def evaluation_transform(size: int) -> v2.Compose:
    """The shorter side to 256 / 224 of ``size``, then the centre, ``size`` x ``size`` pixels."""
    return v2.Compose([_resize(size), v2.CenterCrop(size), v2.PILToTensor()])


def area_crop_transform(size: int, *, auto_augment: bool) -> v2.Compose:
    """ImageNet's training transform: a random rectangle of 8 to 100 % of the area to ``size``, mirrored or not."""
    return _training(v2.RandomResizedCrop(size), auto_augment)


def fixed_crop_transform(size: int, *, auto_augment: bool) -> v2.Compose:
    """CUB-200's training transform: the shorter side to 256 / 224 of ``size``, a random square, mirrored or not."""
    return _training(v2.Compose([_resize(size), v2.RandomCrop(size)]), auto_augment)


def auto_augment_small() -> v2.AutoAugment:
    """Cubuk et al. 2019's policy found on CIFAR-10."""
    return v2.AutoAugment(AutoAugmentPolicy.CIFAR10)


def _resize(size: int) -> v2.Resize:
    return v2.Resize(round(size * RESIZE_RATIO), InterpolationMode.BILINEAR)


def _training(crop: v2.Transform, auto_augment: bool) -> v2.Compose:
    policy = [v2.AutoAugment(AutoAugmentPolicy.IMAGENET)] if auto_augment else []
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *policy, v2.PILToTensor()])
