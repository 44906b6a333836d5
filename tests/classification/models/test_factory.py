"""create_model: what it refuses, and short names."""

from __future__ import annotations

import pytest

from classification.models import create_model, model_names, short_name
from kd_det.common.errors import SetupError


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet32x5", {}, r"model 'resnet32x5' does not exist\. Did you mean 'resnet32x4'\?"),
        ("Resnet50", {}, "Did you mean 'ResNet50'"),
        ("hub/resnet18", {}, "'hub/resnet18': the part before the slash must be one of timm, torchvision"),
        ("resnet8", {"pretrained": True}, "PRETRAINED: there are no ImageNet weights of resnet8"),
        ("resnet8", {"stem": "imagenet"}, "stem 'imagenet' of resnet8: it must be one of cifar, large"),
        ("vgg8", {"image_size": 4}, "vgg8 with the cifar stem does not take 4x4 images: it needs 8x8"),
        ("vgg8", {"image_size": 16, "stem": "large"}, "needs 32x32"),
        (
            "timm/vit_tny_patch16_224",
            {},
            "timm/vit_tny_patch16_224 does not exist.*Did you mean 'vit_tiny_patch16_224'",
        ),
        ("timm/resnet18.no_such_tag", {}, "no_such_tag.*With pretrained weights: .*resnet18.a1_in1k"),
        ("timm/inception_v3", {"image_size": 32}, "timm/inception_v3 does not take 32x32 images"),
        ("torchvision/resnet19", {}, "torchvision/resnet19 does not exist.*Did you mean 'resnet18'"),
        ("torchvision/squeezenet1_1", {}, "does not end with pooling a map and one linear layer"),
        ("torchvision/densenet121", {"image_size": 16}, "torchvision/densenet121 does not take 16x16 images"),
    ],
)
def test_what_cannot_be_built(name, settings, message):
    with pytest.raises(SetupError, match=message):
        create_model(name, 10, **settings)


def test_a_classifier_needs_two_classes():
    with pytest.raises(SetupError, match="resnet8 for 1 classes"):
        create_model("resnet8", 1)


def test_short_names():
    names = ["resnet32x4", "resnet56", "ResNet50", "wrn_40_2", "timm/resnet18.a1_in1k", "torchvision/resnet18"]
    short = ["res32x4", "res56", "ResNet50", "wrn_40_2", "timm_resnet18_a1_in1k", "r18"]
    assert [short_name(name) for name in names] == short
    assert len({short_name(name).lower() for name in model_names()}) == len(model_names())
