"""The mapper gives what Detectron2's gives, and reads 16-bit files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from detectron2.utils.env import seed_all_rng
from PIL import Image

from kd_det.config import load_config
from kd_det.data.mapper import NamingDatasetMapper
from tests.data.own_coco import own_coco, write_own_coco


@pytest.fixture
def records(tmp_path):
    return load_coco_json(*write_own_coco(tmp_path, own_coco()))


@pytest.mark.parametrize("is_train", [True, False])
def test_records_are_detectron2s(records, is_train):
    cfg = load_config("", ["MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask", "INPUT.MIN_SIZE_TRAIN", (60, 80)])
    answers = []
    for mapper in (DatasetMapper(cfg, is_train), NamingDatasetMapper(cfg, is_train)):
        seed_all_rng(5)
        answers.append([mapper(record) for record in records])
    for theirs, ours in zip(*answers, strict=True):
        assert ours.keys() == theirs.keys() and torch.equal(ours["image"], theirs["image"])
        assert (ours["height"], ours["width"]) == (theirs["height"], theirs["width"])
        if is_train:
            ours, theirs = ours["instances"], theirs["instances"]
            assert ours.get_fields().keys() == theirs.get_fields().keys() >= {"gt_boxes", "gt_classes", "gt_masks"}
            assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
            assert torch.equal(ours.gt_masks.tensor, theirs.gt_masks.tensor)
    assert "annotations" in records[0]  # the record itself is as it was


def test_sizes_are_whole_numbers(records):
    mapper = NamingDatasetMapper(load_config(""), is_train=False)
    seen = mapper({**records[0], "height": 96.0, "width": 128.0})
    assert (seen["height"], seen["width"]) == (96, 128) and isinstance(seen["height"], int)


def test_16_bit_images_are_not_white(records):
    grey = np.linspace(0, 255, 96 * 128).reshape(96, 128).astype(np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(records[0]["file_name"])
    cfg = load_config("", ["INPUT.MIN_SIZE_TEST", 0])
    image = NamingDatasetMapper(cfg, is_train=False)(records[0])["image"]
    assert torch.equal(image, torch.from_numpy(grey).expand(3, -1, -1))
