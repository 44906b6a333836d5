"""The data sets of image files: CUB-200-2011 in its official layout, and train/CLASS/ and val/CLASS/ folders.

In CUB-200-2011 each line of ``images.txt`` has an image id and a path below ``images/``, of ``image_class_labels.txt``
an id and a class from 1, of ``train_test_split.txt`` an id and 1 for training or 0 for validation. A class has the name
of its folder.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.datasets import ImageFolder

from kd_det.common.errors import SetupError
from kd_det.common.images import SUFFIXES

LAYOUT = "images.txt, image_class_labels.txt, train_test_split.txt and images/CLASS/IMAGE"  # CUB's


class ImagesOnDisk(NamedTuple):
    """The image files of one split."""

    paths: list[str]
    labels: Tensor  # (N,) int64


class FileData(NamedTuple):
    """A data set of image files."""

    train: ImagesOnDisk
    val: ImagesOnDisk
    class_names: tuple[str, ...]


def read_cub(folder: str) -> FileData:
    """CUB-200-2011 with its official split; the images in the order of their ids.

    Raises:
        SetupError: a file or folder is missing, a line is malformed, or the files disagree.
    """
    images = os.path.join(folder, "images")
    if not os.path.isdir(images):
        raise SetupError(f"DATA.ROOT: there is no folder {images!r}. Expected in {folder!r}: {LAYOUT}.")
    paths = _read_column(folder, "images.txt")
    labels = _same_ids(paths, _read_numbers(folder, "image_class_labels.txt"), folder, "image_class_labels.txt")
    in_train = _same_ids(paths, _read_numbers(folder, "train_test_split.txt"), folder, "train_test_split.txt")
    names = _class_names(folder, paths, labels)
    train, val = (_split(folder, paths, labels, in_train, wanted) for wanted in (1, 0))
    return FileData(train, val, names)


def _read_column(folder: str, name: str) -> dict[int, str]:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise SetupError(f"DATA.ROOT: there is no file {path!r}. Expected in {folder!r}: {LAYOUT}.")
    values: dict[int, str] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.split(maxsplit=1)
            if len(fields) != 2 or not fields[0].isdecimal() or int(fields[0]) in values:
                raise SetupError(f"{path}, line {number}: {line.strip()!r} is not a new image id and a value.")
            values[int(fields[0])] = fields[1].strip()
    return values


def _read_numbers(folder: str, name: str) -> dict[int, int]:
    column = _read_column(folder, name)
    wrong = next((key for key, value in column.items() if not value.isdecimal()), None)
    if wrong is not None:
        raise SetupError(f"{os.path.join(folder, name)}: image {wrong} has {column[wrong]!r}, which is not a number.")
    return {key: int(value) for key, value in column.items()}


def _same_ids(paths: dict[int, str], values: dict[int, int], folder: str, name: str) -> dict[int, int]:
    differing = sorted(paths.keys() ^ values.keys())
    if differing:
        missing = name if differing[0] in paths else "images.txt"
        raise SetupError(
            f"DATA.ROOT: images.txt and {name} in {folder!r} differ in {len(differing)} image ids: {missing} has no "
            f"image {differing[0]}. Unpack the archive again."
        )
    return values


def _class_names(folder: str, paths: dict[int, str], labels: dict[int, int]) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for image, label in labels.items():
        name = os.path.dirname(paths[image])
        if names.setdefault(label, name) != name:
            raise SetupError(
                f"DATA.ROOT: in {folder!r}, class {label} of image_class_labels.txt is {names[label]!r} and, for image "
                f"{image}, {name!r} in images.txt. Unpack the archive again."
            )
    if len(names) < 2 or sorted(names) != list(range(1, len(names) + 1)) or len(set(names.values())) < len(names):
        raise SetupError(
            f"DATA.ROOT: image_class_labels.txt in {folder!r} must number at least two classes from 1 without gaps, "
            f"each class with its own folder; it has {len(names)} numbers up to {max(names, default=0)} for "
            f"{len(set(names.values()))} folders."
        )
    return tuple(names[label] for label in sorted(names))


def _split(
    folder: str, paths: dict[int, str], labels: dict[int, int], in_train: dict[int, int], wanted: int
) -> ImagesOnDisk:
    odd = next((image for image, value in in_train.items() if value not in (0, 1)), None)
    if odd is not None:
        raise SetupError(f"{folder}/train_test_split.txt: image {odd} has {in_train[odd]}; it must be 0 or 1.")
    chosen = [image for image in sorted(paths) if in_train[image] == wanted]
    if not chosen:
        raise SetupError(f"{folder}/train_test_split.txt: no image has {wanted}; both splits need images.")
    files = [os.path.join(folder, "images", paths[image]) for image in chosen]
    return ImagesOnDisk(files, torch.tensor([labels[image] - 1 for image in chosen]))


logger = logging.getLogger(__name__)


def read_folders(root: str) -> FileData:
    """The images below ``root``/train and ``root``/val. Each folder is a class; classes are in alphabetical order.

    Files without one of the suffixes ``kd_det.common.images.SUFFIXES`` are left out; a warning counts them.

    Raises:
        SetupError: a folder is missing or empty, there is only one class, or train and val have different classes.
    """
    train, val = (_list_images(os.path.join(root, split)) for split in ("train", "val"))
    only = sorted(set(train.classes) ^ set(val.classes))
    if only:
        has, lacks = ("train", "val") if only[0] in train.class_to_idx else ("val", "train")
        raise SetupError(
            f"DATA.ROOT: train and val below {root!r} have different classes ({len(only)} are only in one of them): "
            f"{has} has {only[0]!r}, {lacks} does not. Give both the same class folders."
        )
    if len(train.classes) < 2:
        raise SetupError(
            f"DATA.ROOT: {os.path.join(root, 'train')!r} has only one class, {train.classes[0]!r}; give at least two."
        )
    return FileData(_files(train), _files(val), tuple(train.classes))


def _files(split: ImageFolder) -> ImagesOnDisk:
    return ImagesOnDisk([path for path, _ in split.samples], torch.tensor(split.targets))


def _list_images(folder: str) -> ImageFolder:
    if not os.path.isdir(folder):
        raise SetupError(
            f"DATA.ROOT: there is no folder {folder!r}. Expected: train/CLASS/IMAGE and val/CLASS/IMAGE below "
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
            f"DATA.ROOT: {folder!r} is empty or has empty class folders; expected: {os.path.basename(folder)}/CLASS/"
            f"IMAGE. {error} Suffixes of images: {', '.join(SUFFIXES)}."
        ) from error
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(5))
        logger.warning("%s: %d files without an image's suffix are left out (%s)", folder, left_out.total(), kinds)
    return found
