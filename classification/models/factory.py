"""Models by name, and their short names in the names of files."""

from __future__ import annotations

import pkgutil
import re

from classification.models import mobilenetv1, mobilenetv2, resnet, shufflenet, vgg, wrn
from classification.models.layers import STEMS, Stem
from classification.models.protocol import ClassificationModel
from kd_det.common.errors import SetupError, did_you_mean

# The names that papers on distillation between families give to the libraries' models. A name without a tag of
# pretrained weights is that of a student, which starts from random weights.
NICKNAMES = {
    "torchvision/resnet18": "r18",
    "torchvision/resnet34": "r34",
    "torchvision/resnet50.IMAGENET1K_V1": "r50",
    "timm/resnet50.a1_in1k": "r50_a1",
    "MobileNetV1": "mv1",
    "timm/mobilenetv1_100": "mv1_relu6",
    "timm/mobilenetv2_100": "mv2",
    "timm/swin_tiny_patch4_window7_224.ms_in1k": "swin_t",
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k": "vit_s",
    "timm/mixer_b16_224.goog_in21k_ft_in1k": "mixer_b16",
    "timm/convnext_tiny.fb_in1k": "convnext_t",
    "timm/deit_tiny_patch16_224": "deit_t",
    "timm/deit_tiny_patch16_224.fb_in1k": "deit_t",
    "timm/resmlp_12_224": "resmlp_s12",
    "timm/test_vit": "vit",
}
FAMILIES = (resnet, wrn, vgg, mobilenetv1, mobilenetv2, shufflenet)
NETWORKS = {name: build for family in FAMILIES for name, build in family.NETWORKS.items()}
# Imported only when needed: importing timm takes a second or two.
LIBRARIES = {
    "timm": "classification.models.timm_model:TimmModel",
    "torchvision": "classification.models.torchvision_model:TorchvisionModel",
}


def model_names() -> list[str]:
    """The names of the CIFAR networks. ``timm/NAME`` and ``torchvision/NAME`` name those libraries' models."""
    return list(NETWORKS)


def short_name(name: str) -> str:
    """The model's name in the names of files and configurations.

    ``res32x4`` for ``resnet32x4``, ``r18`` for ``torchvision/resnet18``, otherwise the name with ``/`` and ``.``
    replaced by ``_``. Only CIFAR networks named ``resnet...`` in lower case and the models in ``NICKNAMES`` are
    shortened, so that no two networks share a name.
    """
    return NICKNAMES.get(name) or re.sub(r"^resnet(?=\d)", "res", re.sub(r"[/.]", "_", name))


def create_model(
    name: str, num_classes: int, *, pretrained: bool = False, stem: Stem = "cifar", image_size: int | None = None
) -> ClassificationModel:
    """Creates a model, in training mode, on the CPU.

    Args:
        name: one of ``model_names()``, ``timm/NAME`` or ``torchvision/NAME``.
        num_classes: C. Where a pretrained model has a different number of classes, its classifier is replaced by a
            new one.
        pretrained: start from the library's ImageNet weights.
        stem: the first layers of the CIFAR networks, see layers.py. The libraries' models have their own.
        image_size: height and width of the images, in pixels. timm's models of a fixed size are built for it; None
            leaves their own size. The other models take any size, so that it is only checked.

    Raises:
        SetupError: there is no such model, it does not fit the protocol, it has no pretrained weights or they cannot be
            fetched, it does not take images of this size, or ``num_classes`` or ``stem`` is not valid.
    """
    if num_classes < 2:
        raise SetupError(f"{name} for {num_classes} classes: a classifier needs two or more.")
    library, separator, own_name = name.partition("/")
    if separator:
        if library not in LIBRARIES:
            raise SetupError(f"model {name!r}: the part before the slash must be one of {', '.join(LIBRARIES)}.")
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
        raise SetupError(f"stem {stem!r} of {name}: it must be one of {', '.join(STEMS)}.")
    model = NETWORKS[name](num_classes, stem)
    if image_size is not None and image_size < model.reduction:
        raise SetupError(f"{name} with the {stem} stem does not take {image_size}x{image_size} images: "
                         f"it needs {model.reduction}x{model.reduction} or more.")  # fmt: skip
    return model
