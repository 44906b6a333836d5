"""Checkpoints: they are complete, plain Detectron2 loads them, and reading one runs no code."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torchvision.models import resnet18, resnet50

from kd_det.checkpoint import KDCheckpointer, read_checkpoint
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically
from kd_det.config import load_config, plain_config
from kd_det.modeling.terms import TERMS, KDTerm, register_term
from kd_det.pretrained import convert_resnet
from tests.tiny import batch, build, student_config, teacher_files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


def test_a_saved_student_loads_in_plain_detectron2(files, tmp_path):
    cfg = student_config(files, "MODEL.MASK_ON", True)
    model = build(cfg)
    model.load_teacher()
    KDCheckpointer(model, str(tmp_path), kd_terms=model.terms).save("model_final", iteration=7)
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    plain_cfg = plain_config(cfg)
    assert "KD" not in plain_cfg
    plain = build_model(plain_cfg)
    assert saved["model"].keys() == plain.state_dict().keys() and saved["iteration"] == 7
    incompatible = plain.load_state_dict(saved["model"], strict=True)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys

    plain_cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    predictor = DefaultPredictor(plain_cfg)
    assert type(predictor.model).__name__ == "GeneralizedRCNN"
    image = batch(1)[0]["image"].permute(1, 2, 0).numpy()
    predicted = predictor(image)["instances"]
    reference = DefaultPredictor.__new__(DefaultPredictor)
    reference.__dict__.update(predictor.__dict__, model=model.eval())
    expected = reference(image)["instances"]
    assert len(predicted) > 0 and torch.equal(predicted.scores, expected.scores)
    assert torch.equal(predicted.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_what_terms_learn_is_saved_beside_the_student_and_restored(files, tmp_path):
    @register_term("learns")
    class Learns(KDTerm):
        def __init__(self, cfg, maps):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def forward(self, inputs):
            return {"loss_learns": self.weight.sum()}

    try:
        first, second = (build(student_config(files, terms=("learns",)), seed) for seed in (1, 2))
        torch.nn.init.constant_(first.terms.learns.weight, 3.0)
        KDCheckpointer(first, str(tmp_path), kd_terms=first.terms).save("model")
        KDCheckpointer(second, str(tmp_path), kd_terms=second.terms).resume_or_load("", resume=True)
        assert second.terms.learns.weight.tolist() == [3.0, 3.0]
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    finally:
        del TERMS["learns"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "model.pth"
    write_atomically(str(target), b"old")
    with pytest.raises(TypeError):
        write_atomically(str(target), "text is no bytes")
    assert target.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    write_atomically(str(target), b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("numpy_core", ["numpy.core", "numpy._core"])
def test_model_zoo_pickles_are_read(tmp_path, numpy_core):
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.float32(2)}
    content = pickle.dumps({"model": weights, "__author__": "zoo"}, protocol=2)
    for present in (b"numpy._core", b"numpy.core"):  # protocol 2 names modules in plain text
        content = content.replace(b"c" + present + b".multiarray\n", b"c" + numpy_core.encode() + b".multiarray\n")
    assert numpy_core.encode() in content
    (tmp_path / "model.pkl").write_bytes(content)
    read = read_checkpoint(str(tmp_path / "model.pkl"))["model"]
    assert read["scalar"] == 2 and np.array_equal(read["a"], weights["a"])


def test_a_pickle_that_names_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Exploit:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": Exploit()}))
    with pytest.raises(SetupError, match=r"io\.open.*neither an array"):
        read_checkpoint(str(tmp_path / "model.pkl"))
    torch.save({"model": Exploit()}, tmp_path / "model.pth")
    with pytest.raises(SetupError, match="cannot be read"):
        read_checkpoint(str(tmp_path / "model.pth"))
    assert not marker.exists()


@pytest.mark.parametrize("network, depth, channels", [(resnet18, 18, 64), (resnet50, 50, 256)])
def test_torchvision_networks_give_the_same_features(tmp_path, monkeypatch, network, depth, channels):
    import kd_det.pretrained  # noqa: F401

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    theirs = network().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save(theirs.state_dict(), tmp_path / "network.pth")
    overrides = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", channels, "MODEL.DEVICE", "cpu"]
    model = build_model(load_config("configs/coco/_base_r18.yaml", overrides)).eval()
    KDCheckpointer(model).load(f"torchvision://{tmp_path}/network.pth")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = model.backbone.bottom_up(image)["res5"]
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert len(list((tmp_path / "cache" / "kd_det").iterdir())) == 1


def test_other_networks_are_refused():
    with pytest.raises(SetupError, match=r"features\.0\.weight"):
        convert_resnet({"features.0.weight": torch.zeros(1)})


def test_plain_detectron2_checkpoints_still_load(files, tmp_path):
    model = build(student_config(files))
    DetectionCheckpointer(model, str(tmp_path)).save("plain")
    other = build(student_config(files), seed=9)
    KDCheckpointer(other).load(str(tmp_path / "plain.pth"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
