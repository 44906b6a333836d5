import pytest
import torch
from detectron2.modeling import build_model

import kd_det.modeling  # noqa: F401  (registers DistillRCNN)
from kd_det.checkpoint import KDCheckpointer, read_checkpoint
from kd_det.config import load_config
from kd_det.studies.warm_up import EMPTY, WarmUpSettings, draw_crops, warm_up_backbone

QUICK = WarmUpSettings(iterations=2, batch_size=4, crops=20)


@pytest.fixture(scope="module")
def cfg():
    return load_config("configs/digits_det/student.yaml", ["MODEL.DEVICE", "cpu"])


def test_it_writes_every_parameter_and_buffer_of_the_trunk(cfg, tmp_path):
    output = tmp_path / "new" / "backbone.pth"
    accuracy = warm_up_backbone(cfg, output, QUICK)
    assert 0 <= accuracy <= 1
    model = build_model(cfg)
    weights = read_checkpoint(str(output))["model"]
    expected = {name: value.shape for name, value in model.state_dict().items() if ".bottom_up." in name}
    assert {name: value.shape for name, value in weights.items()} == expected
    KDCheckpointer(model, save_to_disk=False).load(str(output))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_it_trains_the_trunk_and_is_repeatable(cfg, tmp_path):
    for name, iterations in (("a", 2), ("b", 2), ("c", 3)):
        settings = WarmUpSettings(iterations=iterations, batch_size=4, crops=20)
        warm_up_backbone(cfg, tmp_path / name, settings)
    first, second, longer = (read_checkpoint(str(tmp_path / name))["model"] for name in "abc")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, longer[name]) for name, value in first.items())


def test_crops_have_digits_and_emptiness_in_the_wanted_shares():
    images, classes = draw_crops(WarmUpSettings(crops=400, crop_size=48, empty_share=0.25))
    assert images.shape == (400, 3, 48, 48)
    assert images.dtype == torch.uint8
    # 400 draws of 0.25: mean 100, standard deviation 8.7
    assert 70 < (classes == EMPTY).sum() < 130
    assert set(classes.tolist()) == set(range(11))
