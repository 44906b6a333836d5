"""The CIFAR networks under the protocol: shapes, the linear classifier, gradients, batch statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from classification.models import ClassificationModel, create_model

FAMILIES = ["resnet8", "resnet8x4", "ResNet18", "wrn_16_1", "wrn_16_2", "vgg8"]
FAMILIES += ["MobileNetV1", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
# Channels and size of the stages, then of the map.
SHAPES = {
    "resnet20": [(16, 32), (32, 16), (64, 8), (64, 8)],
    "resnet8x4": [(64, 32), (128, 16), (256, 8), (256, 8)],
    "ResNet18": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)],
    "ResNet50": [(256, 32), (512, 16), (1024, 8), (2048, 4), (2048, 4)],
    "wrn_16_4": [(64, 32), (128, 16), (256, 8), (256, 8)],
    "vgg13": [(128, 16), (256, 8), (512, 4), (512, 4), (512, 4)],
    "MobileNetV1": [(128, 8), (256, 4), (512, 2), (1024, 1), (1024, 1)],
    "MobileNetV2": [(12, 16), (16, 8), (48, 4), (160, 2), (1280, 2)],
    "ShuffleV1": [(240, 16), (480, 8), (960, 4), (960, 4)],
    "ShuffleV2": [(116, 16), (232, 8), (464, 4), (1024, 4)],
}
# The same at 224 with the large stem: the sizes alone.
LARGE = {
    "resnet20": [56, 28, 14, 14],
    "ResNet18": [56, 28, 14, 7, 7],
    "wrn_16_2": [56, 28, 14, 14],
    "vgg8": [56, 28, 14, 7, 7],
    "MobileNetV2": [56, 28, 14, 7, 7],
    "ShuffleV1": [28, 14, 7, 7],
    "ShuffleV2": [28, 14, 7, 7],
}
# And with the CUB stem: (kernel, stride) of the first convolution, then the sizes.
CUB = {
    "resnet20": ((7, 2), [112, 56, 28, 28]),
    "ResNet18": ((7, 2), [112, 56, 28, 14, 14]),
    "wrn_16_2": ((7, 2), [112, 56, 28, 28]),
    "vgg8": ((3, 1), [112, 56, 28, 28, 28]),
    "MobileNetV2": ((7, 2), [56, 28, 14, 7, 7]),
    "ShuffleV1": ((7, 2), [56, 28, 14, 14]),
    "ShuffleV2": ((7, 2), [56, 28, 14, 14]),
}


def build(name: str, **settings: object) -> ClassificationModel:
    torch.manual_seed(0)
    return create_model(name, 10, **settings)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    with torch.no_grad():
        output = build(name).eval()(torch.randn(2, 3, 32, 32), return_features=True)
    assert output.logits.shape == (2, 10)
    assert output.pooled.shape == (2, SHAPES[name][-1][0])
    maps = [*output.stages, output.map]
    assert [tuple(m.shape) for m in maps] == [(2, d, size, size) for d, size in SHAPES[name]]


@pytest.mark.parametrize("name", CUB)
def test_the_cub_stem(name):
    model = build(name, stem="cub", image_size=224).eval()
    with torch.no_grad():
        output = model(torch.randn(1, 3, 224, 224), return_features=True)
    (kernel, stride), sizes = CUB[name]
    assert [m.shape[-1] for m in [*output.stages, output.map]] == sizes
    assert 224 // model.reduction == output.map.shape[-1]
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((kernel, kernel), (stride, stride))
    assert list(model.state_dict()) == list(build(name).state_dict())


@pytest.mark.parametrize("name", LARGE)
def test_the_large_stem(name):
    model = build(name, stem="large", image_size=224).eval()
    with torch.no_grad():
        output = model(torch.randn(1, 3, 224, 224), return_features=True)
    assert [m.shape[-1] for m in [*output.stages, output.map]] == LARGE[name]
    assert 224 // model.reduction == output.map.shape[-1]
    strided = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert (strided.kernel_size, strided.stride, strided.in_channels) == ((7, 7), (2, 2), 3)
    assert list(model.state_dict()) == list(build(name).state_dict())


@pytest.mark.parametrize("name", [*FAMILIES, "ResNet50"])
def test_the_classifier_of_the_average_gives_the_logits(name):
    model = build(name).eval()
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        output = model(x, return_features=True)
        assert torch.equal(model(x), output.logits)
        classified = model.classifier(output.map.mean((2, 3)))
    assert type(model.classifier) is nn.Linear and model.pools_linearly
    torch.testing.assert_close(output.map.mean((2, 3)), output.pooled)
    torch.testing.assert_close(classified, output.logits)
    assert output.map.min() >= 0


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "MobileNetV2"])
def test_stages_are_activated(name):
    with torch.no_grad():
        stages = build(name).eval()(torch.randn(2, 3, 32, 32), return_features=True).stages
    for stage in stages:
        # ShuffleV2's channels that pass were activated one unit before.
        assert stage.min() == 0 and 0.05 < (stage == 0).float().mean() < 0.95


@pytest.mark.parametrize("name", [*FAMILIES, "ResNet50"])
def test_gradients_reach_all_parameters(name):
    model = build(name)
    output = model(torch.randn(4, 3, 32, 32), return_features=True)
    F.cross_entropy(output.logits, torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stage_gives_gradients_without_spoiling_those_of_the_logits(name):
    """Activations in place must not overwrite what a stage's loss or a later layer needs."""
    model = build(name)
    output = model(torch.randn(2, 3, 32, 32), return_features=True)
    loss = output.logits.square().mean() + output.map.square().mean()
    (loss + sum(stage.square().mean() for stage in output.stages)).backward()
    first = next(model.parameters())
    assert first.grad.isfinite().all() and first.grad.abs().sum() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_features_cost_no_further_update_of_batch_statistics(name):
    x = torch.randn(2, 3, 32, 32)
    plain, shown = build(name), build(name)
    logits, output = plain(x), shown(x, return_features=True)
    assert torch.equal(logits, output.logits)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, shown.state_dict()[key]), key
        if key.endswith("num_batches_tracked"):
            assert value == 1, key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_one(name):
    model = build(name).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)


def test_mobilenet_v1_is_the_published_network():
    """Names, size and activations as in the ImageNet students' code: 4.23 M parameters, no ReLU6."""
    model = create_model("MobileNetV1", 1000)
    state = model.state_dict()
    assert state["model.0.0.weight"].shape == (32, 3, 3, 3)
    assert state["model.1.0.weight"].shape == (32, 1, 3, 3) and state["model.1.3.weight"].shape == (64, 32, 1, 1)
    assert state["model.13.3.weight"].shape == (1024, 1024, 1, 1) and state["fc.weight"].shape == (1000, 1024)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_231_976
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 27
    assert not any(isinstance(module, nn.ReLU6) for module in model.modules())
    strides = [module.stride[0] for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [i for i, stride in enumerate(strides) if stride == 2] == [0, 3, 7, 11, 23]


def test_mobilenet_keeps_the_published_name_of_its_classifier():
    model = build("MobileNetV2")
    names = [key for key, parameter in model.named_parameters() if parameter is model.classifier.weight]
    assert names == ["classifier.0.weight"]
    with torch.no_grad():
        model.classifier.bias.fill_(7)
    assert (model.state_dict()["classifier.0.bias"] == 7).all()
