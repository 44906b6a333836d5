"""The FPN on timm's networks: its maps, its normalisation, timm's weights in it, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
from detectron2.modeling import build_backbone, build_model

import kd_det.pretrained  # noqa: F401  (registers timm://)
from kd_det.checkpoint import KDCheckpointer, local_path
from kd_det.common.errors import SetupError
from kd_det.config import load_config, plain_config
from kd_det.modeling import TimmBackbone
from tests.conftest import ROOT
from tests.tiny import TINY, batch, build, loss_gradients, student_config, teacher_files

TIMM = [
    "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.TIMM.NAME", "mobilenetv2_035",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kd_det"


def published(name: str, seed: int = 0) -> torch.nn.Module:
    """A classifier of timm's with weights and statistics of which no two are alike, as a trained one has."""
    torch.manual_seed(seed)
    model = timm.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


# Feature extractors of three kinds: timm's own class for EfficientNet's kin, renamed entries, a wrapped classifier.
@pytest.mark.parametrize("name", ["mobilenetv2_035", "convnext_atto", "mvitv2_tiny"])
def test_the_maps_are_those_of_timms_classifier(tmp_path, name):
    theirs = published(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = build(load_config("", [*TINY, *TIMM, "MODEL.TIMM.NAME", name]))
    KDCheckpointer(model).load(f"timm://{tmp_path}/weights.pth")
    backbone = model.eval().backbone.bottom_up
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        ours = backbone(image)
        maps = theirs.forward_intermediates(image, intermediates_only=True)
    expected = {value.shape[-2:]: value for value in maps}  # the last map of every size
    for (key, value), stride in zip(ours.items(), (4, 8, 16, 32), strict=True):
        shape = backbone.output_shape()[key]
        assert (shape.stride, shape.channels) == (stride, value.shape[1])
        torch.testing.assert_close(value, expected[64 // stride, 96 // stride], rtol=1e-4, atol=1e-4)


def test_the_fpn_has_five_levels():
    backbone = build_backbone(load_config("", [*TINY, *TIMM]))
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == {
        "p2": (16, 16, 24), "p3": (16, 8, 12), "p4": (16, 4, 6), "p5": (16, 2, 3), "p6": (16, 1, 2),
    }  # fmt: skip
    assert {name: spec.stride for name, spec in backbone.output_shape().items()} == {
        "p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64,
    }  # fmt: skip


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_batch_norm_is_frozen_or_trained(norm):
    backbone = TimmBackbone("mobilenetv2_035", norm=norm).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    sum(value.square().mean() for value in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    parameters = dict(backbone.named_parameters())
    assert parameters["body.conv_stem.weight"].grad.abs().sum() > 0
    moved = not torch.equal(before["body.bn1.running_mean"], backbone.state_dict()["body.bn1.running_mean"])
    assert (moved, "body.bn1.weight" in parameters) == ((norm == "BN"),) * 2


def test_frozen_and_trained_agree_in_evaluation():
    frozen, trained = TimmBackbone("mobilenetv2_035").eval(), TimmBackbone("mobilenetv2_035", norm="BN").eval()
    state = published("mobilenetv2_035").state_dict()
    for backbone in (frozen, trained):
        backbone.load_state_dict(backbone.from_timm(state), strict=False)
        backbone.double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for key, value in trained(image).items():
        torch.testing.assert_close(frozen(image)[key], value)


def test_a_student_is_distilled_saved_and_loaded(tmp_path):
    files = teacher_files(tmp_path)
    cfg = student_config(files, *TIMM)
    model = build(cfg)
    losses, gradients = loss_gradients(model, batch())
    assert "loss_dkd" in losses and gradients["backbone.bottom_up.body.conv_stem.weight"].abs().sum() > 0
    KDCheckpointer(model, str(tmp_path)).save("student")
    other = build_model(plain_config(cfg))
    KDCheckpointer(other).load(str(tmp_path / "student.pth"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_teacher_may_have_a_timm_backbone(tmp_path):
    model = build(student_config(teacher_files(tmp_path, *TIMM), terms=("kd",)))
    assert "loss_kd" in loss_gradients(model, batch())[0]
    assert isinstance(model.teacher.model.backbone.bottom_up, TimmBackbone)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file_is_copied_once(tmp_path, cache, suffix):
    state = published("mobilenetv2_035").state_dict()
    file = tmp_path / f"weights{suffix}"
    safetensors.torch.save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    paths = {local_path(f"timm://{file}", "MODEL.WEIGHTS") for _ in range(2)}
    assert [str(path) for path in cache.iterdir()] == list(paths)
    read = torch.load(paths.pop(), weights_only=True)
    assert read["__author__"] == "timm" and all(
        torch.equal(value, read["model"][name]) for name, value in state.items()
    )


def test_timms_own_weights_come_through_its_cache(tmp_path):
    """``timm://NAME`` with a hub cache that has the weights already: what the first download leaves behind."""
    settings = timm.get_pretrained_cfg("mobilenetv2_050")
    hub = tmp_path / "hub" / f"models--{settings.hf_hub_id.replace('/', '--')}"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0" * 40)
    (hub / "snapshots" / ("0" * 40)).mkdir(parents=True)
    state = published("mobilenetv2_050").state_dict()
    safetensors.torch.save_file(state, hub / "snapshots" / ("0" * 40) / "model.safetensors")
    code = (
        "import kd_det.pretrained; from kd_det.checkpoint import local_path;"
        "print(local_path('timm://mobilenetv2_050', 'MODEL.WEIGHTS'))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    read = torch.load(result.stdout.split()[-1], weights_only=True)["model"]
    assert read.keys() == state.keys() and all(torch.equal(value, read[name]) for name, value in state.items())

    hub.rename(tmp_path / "gone")
    (tmp_path / "cache" / "kd_det" / f"timm-mobilenetv2_050.{settings.tag}.pth").unlink()
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "MODEL.WEIGHTS 'timm://mobilenetv2_050': timm cannot download the weights" in result.stderr
    assert "timm:///path/to/model.safetensors" in result.stderr


@pytest.mark.parametrize(
    "settings, message",
    [
        (("MODEL.TIMM.NAME", "mobilnetv2_100"), "timm has no model 'mobilnetv2_100'. Did you mean 'mobilenetv2_100'"),
        (("MODEL.TIMM.NAME", "vit_tiny_patch16_224"), "strides 16, 16, 16; the FPN needs 4, 8, 16, 32"),
        (("MODEL.TIMM.NAME", "swin_tiny_patch4_window7_224"), "does not take an image of 96 x 64"),
        (("MODEL.TIMM.NORM", "GN"), "MODEL.TIMM.NORM is 'GN'; it must be one of FrozenBN, BN"),
        (("MODEL.FPN.IN_FEATURES", ["res1", "res2"]), "MODEL.FPN.IN_FEATURES is ['res1', 'res2']"),
        (("MODEL.BACKBONE.FREEZE_AT", 2), "MODEL.BACKBONE.FREEZE_AT is 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SetupError) as refused:
        build_backbone(load_config("", [*TINY, *TIMM, *settings]))
    assert message in str(refused.value)


def test_maps_with_channels_last_are_refused(monkeypatch):
    create = timm.create_model

    def channels_last(name, **settings):
        model = create(name, **settings)
        forward = model.forward
        model.forward = lambda images: [value.permute(0, 2, 3, 1) for value in forward(images)]
        return model

    monkeypatch.setattr(timm, "create_model", channels_last)
    with pytest.raises(SetupError, match=r"not \[\(1, 16, 24, 16\).*\(N, C, H, W\)"):
        TimmBackbone("mobilenetv2_050")


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SetupError, match="pip install timm"):
        TimmBackbone("mobilenetv2_035")
    with pytest.raises(SetupError, match="pip install timm"):
        local_path("timm://mobilenetv2_100", "MODEL.WEIGHTS")


@pytest.mark.parametrize(
    "path, message",
    [
        ("timm://mobilnetv2_100", "Did you mean 'mobilenetv2_100'"),
        ("timm://mobilenetv2_100.nobody", "Did you mean 'mobilenetv2_100"),
        ("timm:///nowhere/weights.pth", "no file '/nowhere/weights.pth'"),
    ],
)
def test_weights_that_do_not_exist_are_refused(path, message):
    with pytest.raises(SetupError, match=r"MODEL\.WEIGHTS") as refused:
        local_path(path, "MODEL.WEIGHTS")
    assert message in str(refused.value)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(SetupError, match="cannot be read"):
        local_path(f"timm://{tmp_path}/weights.safetensors", "MODEL.WEIGHTS")


@pytest.mark.parametrize(
    "other, message",
    [
        (
            "mobilenetv2_050",
            r"blocks\.1\.0\.bn3\.weight is \(8,\) in it and \(16,\) in the file",
        ),  # the same entries in other shapes
        ("mobilenetv2_110d", r"blocks\.1\.2.*is not one of its entries"),  # a deeper one
        ("resnet18", r"layer1.*is not one of its entries"),
    ],
)
def test_weights_of_another_network_are_refused(other, message):
    with pytest.raises(SetupError, match=f"MODEL.TIMM.NAME 'mobilenetv2_035'.*({message})"):
        TimmBackbone("mobilenetv2_035").from_timm(timm.create_model(other).state_dict())


def test_an_incomplete_file_is_refused():
    state = timm.create_model("mobilenetv2_035").state_dict()
    del state["blocks.3.1.bn2.weight"], state["classifier.weight"]
    with pytest.raises(SetupError, match=r"blocks\.3\.1\.bn2\.weight is missing\.$"):
        TimmBackbone("mobilenetv2_035").from_timm(state)


def test_timm_weights_without_a_timm_backbone_are_refused(tmp_path):
    torch.save(timm.create_model("mobilenetv2_035").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(SetupError, match=r"MODEL\.BACKBONE\.NAME build_timm_fpn_backbone"):
        KDCheckpointer(build(load_config("", TINY))).load(f"timm://{tmp_path}/weights.pth")
