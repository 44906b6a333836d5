"""Reads every image once, to find the unreadable ones before training does."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from fvcore.common.config import CfgNode
from tqdm import tqdm

from classification.data.catalog import ON_DISK, check_name, root_of
from classification.data.image_file import UnreadableImageError, read_image
from kd_det.common.signals import protect_worker


def check_images(cfg: CfgNode) -> list[str]:
    """The unreadable images of both splits, "PATH: reason", found by DATA.WORKERS processes.

    Data sets that are kept in memory have none: they are read when they are built.

    Raises:
        SetupError: the data set itself is missing or inconsistent.
    """
    check_name(cfg)
    if cfg.DATA.NAME not in ON_DISK:
        return []
    content = ON_DISK[cfg.DATA.NAME](root_of(cfg))
    paths = content.train.paths + content.val.paths
    with ProcessPoolExecutor(max(1, cfg.DATA.WORKERS), initializer=protect_worker) as pool:
        answers = pool.map(_what_is_wrong, paths, chunksize=32)
        reasons = list(tqdm(answers, "reading images", len(paths), unit="image", disable=None))
    return [f"{path}: {reason}" for path, reason in zip(paths, reasons, strict=True) if reason]


def _what_is_wrong(path: str) -> str:
    try:
        read_image(path)
    except UnreadableImageError as error:
        return " ".join(str(error.__cause__).split()) or type(error.__cause__).__name__
    return ""
