"""Checks of DATA's keys that need no data."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from classification.data.catalog import IN_MEMORY, check_name
from classification.schema import checked
from kd_det.common.errors import SetupError

MEMORY_SIZE = 32


def check_settings(cfg: CfgNode, processes: int) -> None:
    """Raises a ``SetupError`` for the first key of DATA that cannot work."""
    check_name(cfg)
    _check_numbers(cfg, processes)
    _check_image_size(cfg.DATA.NAME, cfg.DATA.IMAGE_SIZE)


def check_batch(cfg: CfgNode, samples: int) -> None:
    """Raises a ``SetupError`` where a batch is larger than the training set."""
    if samples < cfg.DATA.BATCH_SIZE:
        raise SetupError(
            f"DATA.BATCH_SIZE {cfg.DATA.BATCH_SIZE} is larger than the training set of {samples} images; give at most "
            "that."
        )


def _check_numbers(cfg: CfgNode, processes: int) -> None:
    for key in ("SEED", *(f"DATA.{name}" for name in cfg.DATA)):
        checked(cfg, key)
    if cfg.DATA.BATCH_SIZE % processes:
        raise SetupError(
            f"DATA.BATCH_SIZE {cfg.DATA.BATCH_SIZE} is that of all processes together and does not divide by the "
            f"{processes} there are; give a multiple of {processes}."
        )


def _check_image_size(name: str, size: int) -> None:
    if name in IN_MEMORY and size != MEMORY_SIZE:
        raise SetupError(
            f"DATA.IMAGE_SIZE {size}: the images of {name!r} are {MEMORY_SIZE} x {MEMORY_SIZE}. Leave it at "
            f"{MEMORY_SIZE}; TEACHER.IMAGE_SIZE and STUDENT.IMAGE_SIZE enlarge what a network sees."
        )
