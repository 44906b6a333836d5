"""A resumed run draws different images from its first iterations, and the same ones each time it is resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data.samplers import TrainingSampler
from detectron2.utils.env import seed_all_rng

from kd_det.config import load_config
from kd_det.engine.run import _seed_anew


def images(cfg, checkpoint=None):
    """The first images that training draws, after ``checkpoint`` if one is there."""
    seed_all_rng(cfg.SEED)  # as Detectron2's default_setup
    if checkpoint:
        Path(cfg.OUTPUT_DIR, checkpoint).touch()
        Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text(checkpoint)
    _seed_anew(cfg)
    sampler = iter(TrainingSampler(1000, seed=int(np.random.randint(2**31))))
    return [next(sampler) for _ in range(20)]


@pytest.fixture
def cfg(tmp_path):
    return load_config("", ["OUTPUT_DIR", str(tmp_path), "SEED", 3])


def test_each_checkpoint_goes_on_with_images_of_its_own(cfg):
    first, after_100, after_200 = images(cfg), images(cfg, "model_0000099.pth"), images(cfg, "model_0000199.pth")
    assert first != after_100 != after_200 != first
    assert images(cfg, "model_0000099.pth") == after_100


def test_a_fixed_subset_stays_as_it_is(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    assert images(cfg) == images(cfg, "model_0000099.pth")
