"""timm's and torchvision's models under the protocol, at tiny sizes and without a network."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from classification.models import ClassificationModel, create_model
from kd_det.common.errors import SetupError

# Name: image size, (channels, size) of the stages, then of the map; whether it pools linearly.
MODELS = {
    "torchvision/resnet18": (64, [(64, 16), (128, 8), (256, 4), (512, 2), (512, 2)], True),
    "torchvision/resnet34": (64, [(64, 16), (128, 8), (256, 4), (512, 2), (512, 2)], True),
    "torchvision/resnet50": (64, [(256, 16), (512, 8), (1024, 4), (2048, 2), (2048, 2)], True),
    "torchvision/mobilenet_v2": (64, [(24, 16), (32, 8), (96, 4), (1280, 2), (1280, 2)], False),
    "torchvision/swin_t": (64, [(768, 2), (768, 2)], True),
    "timm/mobilenetv1_100": (64, [(128, 16), (256, 8), (512, 4), (1024, 2), (1024, 2)], True),
    "timm/test_resnet": (64, [(32, 16), (48, 8), (192, 4), (96, 2), (96, 2)], True),
    "timm/test_convnext": (64, [(24, 16), (32, 8), (48, 4), (64, 2), (64, 2)], False),
    "timm/test_vit": (64, [(64, 4)] * 5, False),
    "timm/deit_tiny_distilled_patch16_224": (64, [(192, 4)] * 5, False),
    "timm/swin_tiny_patch4_window7_224": (64, [(96, 16), (192, 8), (384, 4), (768, 2), (768, 2)], True),
    "timm/mixer_s32_224": (64, [(512, 2)] * 5, True),
}
SMALL = [
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "timm/test_resnet",
    "timm/test_convnext",
    "timm/test_vit",
    "timm/mixer_s32_224",
]


def build(name: str, **settings: object) -> ClassificationModel:
    torch.manual_seed(0)
    return create_model(name, 7, image_size=MODELS[name][0], **settings)


def image(name: str, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, MODELS[name][0], MODELS[name][0])


@pytest.mark.parametrize("name", MODELS)
def test_protocol(name):
    _, shapes, linear = MODELS[name]
    model = build(name)
    assert all(module.training for module in model.modules())
    model.eval()
    x = image(name)
    with torch.no_grad():
        output = model(x, return_features=True)
        torch.testing.assert_close(model(x), output.logits)
    maps = [*output.stages, output.map]
    assert [tuple(m.shape) for m in maps] == [(2, d, size, size) for d, size in shapes]
    assert output.logits.shape == (2, 7)
    assert model.pools_linearly is linear
    if model.classifier is not None:
        assert isinstance(model.classifier, nn.Linear)
        torch.testing.assert_close(model.classifier(output.pooled), output.logits)
    if linear:
        torch.testing.assert_close(output.map.mean((2, 3)), output.pooled)
    assert len(model.input_mean) == len(model.input_std) == 3


def test_distilled_deit_has_no_linear_classifier():
    assert build("timm/deit_tiny_distilled_patch16_224").classifier is None


def test_tokens_are_laid_out_row_by_row_without_the_class_token():
    model = build("timm/test_vit").eval()
    x = image("timm/test_vit")
    with torch.no_grad():
        output = model(x, return_features=True)
        tokens = model.model.forward_features(x)
    assert torch.equal(output.map[1, :, 2, 3], tokens[1, 1 + 2 * 4 + 3])
    assert torch.equal(output.pooled, tokens[:, 0])


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_all_parameters(name):
    model = build(name)
    for parameter in model.parameters():
        if not parameter.any():  # timm starts some branches and classifiers at zero, which stops gradients
            nn.init.normal_(parameter, std=0.1)
    output = model(image(name, batch=4), return_features=True)
    loss = F.cross_entropy(output.logits, torch.arange(4)) + output.map.square().mean()
    (loss + sum(stage.square().mean() for stage in output.stages)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_resnet"])
def test_features_cost_no_further_update_of_batch_statistics(name):
    model = build(name)
    counts = [value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts and all(count == 0 for count in counts)
    model(image(name), return_features=True)
    assert all(count == 1 for count in counts)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_of_one(name):
    model = build(name).eval()
    with torch.no_grad():
        output = model(image(name, batch=1), return_features=True)
    assert output.logits.shape == (1, 7) and output.logits.isfinite().all()


def test_building_takes_no_random_numbers_but_the_weights():
    torch.manual_seed(0)
    timm.create_model("test_resnet", num_classes=7)
    expected = torch.rand(3)
    build("timm/test_resnet")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("timm/test_vit", lambda: timm.create_model("test_vit", num_classes=7, img_size=64)),
        ("torchvision/resnet18", lambda: torchvision.models.resnet18(num_classes=7)),
    ],
)
def test_the_state_dict_is_the_librarys(name, library):
    original = library().eval()
    ours = build(name).eval()
    assert set(ours.state_dict()) == set(original.state_dict())
    ours.load_state_dict(original.state_dict())
    x = image(name)
    with torch.no_grad():
        assert torch.equal(ours(x), original(x))
    original.load_state_dict(build(name).state_dict())
    wrapped, other = nn.Sequential(ours), nn.Sequential(build(name))
    other.load_state_dict(wrapped.state_dict())
    assert all(key.startswith("0.") and not key.startswith("0.model.") for key in wrapped.state_dict())
    assert torch.equal(other[0].classifier.weight, ours.classifier.weight)


def test_a_foreign_state_dict_is_refused():
    model = build("timm/test_vit")
    weights = model.state_dict()
    del weights["cls_token"]
    with pytest.raises(RuntimeError, match="cls_token"):
        model.load_state_dict(weights)
    with pytest.raises(RuntimeError, match="surplus"):
        model.load_state_dict({**model.state_dict(), "surplus": torch.zeros(1)})


def test_pretrained_torchvision(torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    torch.manual_seed(0)
    published = torchvision.models.resnet18().state_dict()  # what the fixture stored
    model = create_model("torchvision/resnet18", 1000, pretrained=True, image_size=64)
    assert all(torch.equal(value, published[key]) for key, value in model.state_dict().items())
    named = create_model("torchvision/resnet18.IMAGENET1K_V1", 1000, pretrained=True, image_size=64).state_dict()
    assert all(torch.equal(value, published[key]) for key, value in named.items())
    with pytest.raises(
        SetupError, match=r"no weights 'IMAGENET1K_V9'\. Did you mean 'IMAGENET1K_V1'\? Known: "
    ):
        create_model("torchvision/resnet18.IMAGENET1K_V9", 1000, pretrained=True)
    other = create_model("torchvision/resnet18", 7, pretrained=True, image_size=64).state_dict()
    assert other["fc.weight"].shape == (7, 512)
    assert all(torch.equal(value, published[key]) for key, value in other.items() if not key.startswith("fc."))


def test_pretrained_timm(monkeypatch):
    torch.manual_seed(1)
    published = timm.create_model("test_resnet").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(published))
    model = create_model("timm/test_resnet", 7, pretrained=True, image_size=64)
    own = model.state_dict()
    head = [key for key, value in own.items() if value.shape != published[key].shape]
    assert head == ["fc.weight", "fc.bias"]
    assert all(torch.equal(own[key], published[key]) for key in own if key not in head)


@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("timm/test_resnet", "timm.models._builder.load_state_dict_from_hf"),
        ("torchvision/resnet34", "torchvision.models._api.load_state_dict_from_url"),
    ],
)
def test_weights_that_cannot_be_fetched(name, loader, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(loader, offline)
    with pytest.raises(SetupError, match="no route to host"):
        create_model(name, 7, pretrained=True)


def test_a_model_that_has_no_pretrained_weights():
    with pytest.raises(SetupError, match="PRETRAINED: timm has no weights of mixer_s32_224"):
        create_model("timm/mixer_s32_224", 7, pretrained=True)


def test_a_timm_model_without_classifier(monkeypatch):
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: original("test_resnet", num_classes=0))
    with pytest.raises(SetupError, match="timm/test_resnet is no classifier"):
        create_model("timm/test_resnet", 7, image_size=64)
