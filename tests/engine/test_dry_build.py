from __future__ import annotations

import time

import pytest
import torch
from detectron2 import model_zoo
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.engine.setup import dry_build, dry_build_solver

R50 = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


def zoo_config(*overrides: object):
    return load_config(model_zoo.get_config_file(R50), ["MODEL.DEVICE", "cpu", *overrides])


def test_it_takes_no_memory_and_draws_no_random_numbers():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    cfg = zoo_config("MODEL.ROI_BOX_HEAD.FC_DIM", 4096)
    model = dry_build(cfg)
    dry_build_solver(cfg, model)
    assert all(value.is_meta for value in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class LooksAtValues(Backbone):
    """A network that cannot be built on the meta device, as some of timm's."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(int(torch.ones(2).sum().item())))
        self.fault = {}["a key that is not there"] if fault else None

    def forward(self, images):
        return {"map": images}

    def output_shape(self):
        return {"map": ShapeSpec(channels=3, stride=16)}


@pytest.fixture
def backbone(request):
    def build(cfg, input_shape):
        return LooksAtValues(request.param)

    BACKBONE_REGISTRY._do_register("looks_at_values", build)
    yield zoo_config(
        *("MODEL.BACKBONE.NAME", "looks_at_values", "MODEL.RPN.IN_FEATURES", ["map"]),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["map"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32]]),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 8),
    )
    del BACKBONE_REGISTRY._obj_map["looks_at_values"]


@pytest.mark.parametrize("backbone", [False], indirect=True)
def test_a_network_that_needs_memory_is_built_in_memory(backbone):
    state = torch.get_rng_state()
    assert not any(value.is_meta for value in dry_build(backbone).parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("backbone", [True], indirect=True)
def test_what_others_raise_is_one_error(backbone):
    with pytest.raises(SetupError, match="the model cannot be built with these settings: KeyError: 'a key that is not"):
        dry_build(backbone)


def test_more_weights_than_memory():
    start = time.perf_counter()
    with pytest.raises(SetupError, match=r"the weights need .* GiB.*roi_heads\.box_head\.fc1\.weight"):
        dry_build(zoo_config("MODEL.ROI_BOX_HEAD.FC_DIM", 2**20, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 64))
    assert time.perf_counter() - start < 20
