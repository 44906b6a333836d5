"""Checks of DATA's keys that need no data."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from classification.data.catalog import IN_MEMORY, check_name
from classification.data.confidence import check_confidence_range
from classification.data.label_noise import check_label_noise
from kd_det.common.errors import SetupError

MEMORY_SIZE = 32


def check_settings(cfg: CfgNode, processes: int) -> None:
    """Raises a ``SetupError`` for the first key of DATA that cannot work."""
    check_name(cfg)
    _check_numbers(cfg, processes)
    _check_image_size(cfg.DATA.NAME, cfg.DATA.IMAGE_SIZE)
    check_label_noise(cfg.DATA.LABEL_NOISE)
    check_confidence_range(cfg.DATA.CONFIDENCE_RANGE)


def check_batch(cfg: CfgNode, samples: int) -> None:
    """Raises a ``SetupError`` where a batch is larger than the training set."""
    if samples < cfg.DATA.BATCH_SIZE:
        raise SetupError(
            f"DATA.BATCH_SIZE {cfg.DATA.BATCH_SIZE} is larger than the training set of {samples} images; give at most "
            "that."
        )


def _check_numbers(cfg: CfgNode, processes: int) -> None:
    for key, smallest in (("BATCH_SIZE", 1), ("EVAL_BATCH_SIZE", 1), ("WORKERS", 0)):
        if cfg.DATA[key] < smallest:
            raise SetupError(f"DATA.{key} {cfg.DATA[key]} is too small; give at least {smallest}.")
    if cfg.SEED < 0:
        raise SetupError(f"SEED {cfg.SEED} is negative; give 0 or more.")
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
    if size < 1:
        raise SetupError(f"DATA.IMAGE_SIZE {size} is too small; give the height and width in pixels, such as 224.")
