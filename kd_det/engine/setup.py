"""What every command line of detection does first and last: read the configuration, and end with one line where it
cannot work."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

import kd_det.pretrained  # noqa: F401  (registers torchvision://)
from kd_det.common.errors import SetupError, one_line_errors, whole_number
from kd_det.config import load_config
from kd_det.config.check import check_keys, check_settings
from kd_det.config.model_rules import check_model
from kd_det.data.coco_json import use_datasets
from kd_det.modeling.terms import TERMS

__all__ = ["one_line_errors", "read_setup"]

logger = logging.getLogger(__name__)

NOT_GIVEN = "the default"


def read_setup(
    config_file: str | Sequence[str],
    overrides: Sequence[object] = (),
    datasets: Sequence[str] = (),
    *,
    processes: int = 1,
) -> CfgNode:
    """The configuration, every key of it checked, with its data sets registered and its device found.

    Args:
        config_file: paths or shipped names, see ``load_config``; empty for Detectron2's defaults.
        overrides: KEY VALUE ...
        datasets: the values of ``--dataset``.
        processes: the value of ``--num-gpus``, if there is that option.

    Raises:
        SetupError: the configuration is not valid, a data set cannot be registered, or there is no such device.
    """
    whole_number("--num-gpus", processes, 1)
    cfg = load_config(config_file, overrides, device=NOT_GIVEN)
    check_settings(cfg)
    for term in TERMS.values():
        check_keys(cfg, term.checks)
    check_model(cfg)
    _find_device(cfg, processes)
    use_datasets(cfg, datasets)
    return cfg


def _find_device(cfg: CfgNode, processes: int) -> None:
    """Checks ``MODEL.DEVICE``, or sets it where it was not given: to the GPU, or to the CPU if there is none."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    given = cfg.MODEL.DEVICE != NOT_GIVEN
    if processes > max(1, gpus) and (not given or cfg.MODEL.DEVICE.startswith("cuda")):
        raise SetupError(
            f"--num-gpus is {processes} but there are {gpus} GPUs. Give a number up to {max(1, gpus)}; with "
            "MODEL.DEVICE cpu it is the number of processes on the CPU."
        )
    if given:
        _check_device(cfg.MODEL.DEVICE, gpus, processes)
        return
    cfg.MODEL.DEVICE = "cuda" if gpus else "cpu"
    if not gpus and comm.is_main_process():
        logger.warning("PyTorch finds no GPU here: working on the CPU. MODEL.DEVICE cpu says so without this warning.")


def _check_device(name: str, gpus: int, processes: int) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SetupError(f"MODEL.DEVICE is {name!r}; it must be cuda or cpu, or another device of PyTorch's.") from None
    if device.type == "cuda" and not gpus:
        raise SetupError(f"MODEL.DEVICE is {name!r} but PyTorch finds no GPU here. Add MODEL.DEVICE cpu.")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise SetupError(f"MODEL.DEVICE is {name!r} but there are {gpus} GPUs, numbered from 0. Set it to cuda.")
    if device.type == "cuda" and device.index is not None and processes > 1:
        raise SetupError(f"MODEL.DEVICE is {name!r} for --num-gpus {processes}; each takes its own. Set it to cuda.")
    if device.type not in ("cuda", "cpu") and not _works(device):
        raise SetupError(f"MODEL.DEVICE is {name!r}, but PyTorch has no such device here. Set it to cuda or cpu.")


def _works(device: torch.device) -> bool:
    try:
        return device.type != "meta" and torch.zeros(1, device=device).item() == 0
    except (RuntimeError, NotImplementedError, AssertionError, ModuleNotFoundError, AttributeError):
        return False  # what the back ends raise that are not built in or have no hardware
