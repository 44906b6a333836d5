"""What every command line of detection does first and last: read the configuration, and end with one line where it
cannot work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

import kd_det.modeling
import kd_det.pretrained  # noqa: F401  (both for what they register: the models, torchvision://)
from kd_det.common.errors import SetupError, one_line_errors
from kd_det.config import load_config
from kd_det.data.coco_json import use_datasets

__all__ = ["one_line_errors", "read_setup"]


def read_setup(
    config_file: str | Sequence[str], overrides: Sequence[object] = (), datasets: Sequence[str] = ()
) -> CfgNode:
    """The configuration with its data sets registered and its device found.

    Args:
        config_file: paths or shipped names, see ``load_config``; empty for Detectron2's defaults.
        overrides: KEY VALUE ...
        datasets: the values of ``--dataset``.

    Raises:
        SetupError: the configuration is not valid, a data set cannot be registered, or there is no GPU for it.
    """
    cfg = load_config(config_file, overrides)
    use_datasets(cfg, datasets)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise SetupError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} but PyTorch finds no GPU here. Add MODEL.DEVICE cpu.")
    return cfg
