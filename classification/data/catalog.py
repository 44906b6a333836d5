"""The data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable

from fvcore.common.config import CfgNode

from classification.data import transforms
from classification.data.cifar import read_cifar100
from classification.data.contents import FileData, MemoryData
from classification.data.cub import read_cub
from classification.data.digits import read_digits
from classification.data.folders import read_folders
from kd_det.common.errors import SetupError, did_you_mean

# Each takes DATA.ROOT.
IN_MEMORY: dict[str, Callable[[str], MemoryData]] = {
    "digits": lambda root: read_digits(),
    "cifar100": read_cifar100,
}
ON_DISK: dict[str, Callable[[str], FileData]] = {
    "imagenet": lambda root: read_folders(os.path.join(root, "imagenet")),
    "cub200": lambda root: read_cub(os.path.join(root, "CUB_200_2011")),
    "folder": read_folders,
}
# The training transform of those on disk, by IMAGE_SIZE and AUTO_AUGMENT.
TRAINING_TRANSFORMS: dict[str, Callable[..., Callable]] = {
    "imagenet": transforms.area_crop_transform,
    "cub200": transforms.fixed_crop_transform,
    "folder": transforms.area_crop_transform,
}


def check_name(cfg: CfgNode) -> None:
    """Raises a ``SetupError`` that suggests the nearest name where DATA.NAME is none."""
    known = [*IN_MEMORY, *ON_DISK]
    name = cfg.DATA.NAME
    if name not in known:
        raise SetupError(f"DATA.NAME {name!r} does not exist.{did_you_mean(name, known)} Known: {', '.join(known)}.")


def root_of(cfg: CfgNode) -> str:
    """DATA.ROOT, with ``~`` written out."""
    return os.path.expanduser(cfg.DATA.ROOT)
