"""Models by name."""

from __future__ import annotations

import pkgutil

from classification.models import bottleneck, mobilenetv2, resnet, shufflenetv1, shufflenetv2, vgg, wrn
from classification.models.protocol import ClassificationModel
from classification.models.stem import STEMS, Stem
from kd_det.common.errors import SetupError, did_you_mean

FAMILIES = (resnet, bottleneck, wrn, vgg, mobilenetv2, shufflenetv1, shufflenetv2)
NETWORKS = {name: build for family in FAMILIES for name, build in family.NETWORKS.items()}
# Imported when asked for: timm alone takes a second or two.
LIBRARIES = {
    "timm": "classification.models.timm_model:TimmModel",
    "torchvision": "classification.models.torchvision_model:TorchvisionModel",
}


def model_names() -> list[str]:
    """The CIFAR networks, by family; ``timm/NAME`` and ``torchvision/NAME`` are those libraries' models."""
    return list(NETWORKS)


def create_model(
    name: str, num_classes: int, *, pretrained: bool = False, stem: Stem = "cifar", image_size: int | None = None
) -> ClassificationModel:
    """A new model, in training mode, on the CPU.

    Args:
        name: one of ``model_names()``, ``timm/NAME`` or ``torchvision/NAME``.
        num_classes: C. The classifier of a pretrained model is new where its own has another number of classes.
        pretrained: start from the library's ImageNet weights.
        stem: of the CIFAR networks, see stem.py. The libraries' models have their own.
        image_size: height and width of the images, in pixels. timm's models of a fixed size are built for it; None is
            their own size. The others take any size, and it is only checked.

    Raises:
        SetupError: there is no such model, it is no classifier that the protocol fits, it has no pretrained weights or
            they cannot be had, it does not take images of this size, or ``num_classes`` or ``stem`` makes no sense.
    """
    if num_classes < 2:
        raise SetupError(f"{name} for {num_classes} classes: a classifier needs two or more.")
    library, separator, own_name = name.partition("/")
    if separator:
        if library not in LIBRARIES:
            raise SetupError(f"model {name!r}: before the slash stands one of {', '.join(LIBRARIES)}.")
        adapter = pkgutil.resolve_name(LIBRARIES[library])
        return adapter(own_name, num_classes, pretrained=pretrained, image_size=image_size)
    return _create_network(name, num_classes, pretrained, stem, image_size)


def _create_network(
    name: str, num_classes: int, pretrained: bool, stem: Stem, image_size: int | None
) -> ClassificationModel:
    if name not in NETWORKS:
        known = f"Known: {', '.join(NETWORKS)}, timm/NAME, torchvision/NAME."
        raise SetupError(f"model {name!r} does not exist.{did_you_mean(name, NETWORKS)} {known}")
    if pretrained:
        remedy = "train it, name its file in WEIGHTS, or take a timm/ or torchvision/ model"
        raise SetupError(f"PRETRAINED: there are no ImageNet weights of {name}; {remedy}.")
    if stem not in STEMS:
        raise SetupError(f"stem {stem!r} of {name}: it is one of {', '.join(STEMS)}.")
    model = NETWORKS[name](num_classes, stem)
    if image_size is not None and image_size < model.reduction:
        raise SetupError(f"{name} with the {stem} stem does not take {image_size}x{image_size} images: "
                         f"it needs {model.reduction}x{model.reduction} or more.")  # fmt: skip
    return model
