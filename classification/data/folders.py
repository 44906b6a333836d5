"""Data sets laid out as train/CLASS/ and val/CLASS/: ImageNet's and the user's own."""

from __future__ import annotations

import logging
import os
from collections import Counter

import torch
from torchvision.datasets import ImageFolder

from classification.data.contents import FileData, ImagesOnDisk
from kd_det.common.errors import SetupError
from kd_det.common.images import SUFFIXES

logger = logging.getLogger(__name__)


def read_folders(root: str) -> FileData:
    """The images below ``root``/train and ``root``/val; a class is a folder, in alphabetical order.

    Files that do not end as one of ``kd_det.common.images.SUFFIXES`` are left out; a warning counts them.

    Raises:
        SetupError: a folder is missing or empty, there is one class only, or the two have different classes.
    """
    train, val = (_list_images(os.path.join(root, split)) for split in ("train", "val"))
    only = sorted(set(train.classes) ^ set(val.classes))
    if only:
        has, lacks = ("train", "val") if only[0] in train.class_to_idx else ("val", "train")
        raise SetupError(
            f"DATA.ROOT: train and val below {root!r} have different classes ({len(only)} are in one only): {has} has "
            f"{only[0]!r}, {lacks} has not. Give both the same class folders."
        )
    if len(train.classes) < 2:
        raise SetupError(
            f"DATA.ROOT: {os.path.join(root, 'train')!r} has one class only, {train.classes[0]!r}; give at least two."
        )
    splits = [ImagesOnDisk([path for path, _ in split.samples], torch.tensor(split.targets)) for split in (train, val)]
    return FileData(*splits, tuple(train.classes))


def _list_images(folder: str) -> ImageFolder:
    if not os.path.isdir(folder):
        raise SetupError(
            f"DATA.ROOT: no folder {folder!r}. Expected are train/CLASS/IMAGE and val/CLASS/IMAGE below "
            f"{os.path.dirname(folder)!r}."
        )
    left_out: Counter[str] = Counter()

    def is_image(path: str) -> bool:
        suffix = os.path.splitext(path)[1].lower()
        left_out.update([suffix or "no suffix"] if suffix not in SUFFIXES else [])
        return suffix in SUFFIXES

    try:
        found = ImageFolder(folder, is_valid_file=is_image)
    except FileNotFoundError as error:
        raise SetupError(
            f"DATA.ROOT: {folder!r} is empty or has empty class folders; expected is {os.path.basename(folder)}/CLASS/"
            f"IMAGE. {error} An image ends in {', '.join(SUFFIXES)}."
        ) from error
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(5))
        logger.warning("%s: %d files are left out, by their names no images (%s)", folder, left_out.total(), kinds)
    return found
