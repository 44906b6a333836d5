from __future__ import annotations

import pytest

from classification.data import small_images
from classification.studies.pipeline import SyntheticCIFAR100, write_synthetic_cifar100
from tests.classification.data.layouts import config, write_cub, write_folders


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """A folder with 21 training and 7 test images in CIFAR-100's own file format."""
    write_synthetic_cifar100(tmp_path, 21, 7)
    monkeypatch.setattr(small_images, "CIFAR100", SyntheticCIFAR100)
    return tmp_path


@pytest.fixture(params=["digits", "cifar100", "imagenet", "cub200", "folder"])
def any_config(request, tmp_path):
    """A configuration of each data set, its data tiny but for the digits."""
    small = ("DATA.NAME", request.param, "DATA.ROOT", tmp_path)
    if request.param == "cifar100":
        request.getfixturevalue("cifar_root")
    if request.param == "cub200":
        write_cub(tmp_path)
        return config(*small, "DATA.IMAGE_SIZE", 24, "DATA.BATCH_SIZE", 2)
    if request.param in ("imagenet", "folder"):
        write_folders(tmp_path / "imagenet" if request.param == "imagenet" else tmp_path)
        return config(*small, "DATA.IMAGE_SIZE", 24, "DATA.BATCH_SIZE", 4)
    return config(*small)
