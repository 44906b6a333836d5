"""CUB-200-2011 in its official layout.

``images.txt`` has an id and a path below ``images/`` a line, ``image_class_labels.txt`` an id and a class from 1,
``train_test_split.txt`` an id and 1 for training or 0. A class is named by its folder.
"""

from __future__ import annotations

import os

import torch

from classification.data.contents import FileData, ImagesOnDisk
from kd_det.common.errors import SetupError

LAYOUT = "images.txt, image_class_labels.txt, train_test_split.txt and images/CLASS/IMAGE"


def read_cub(folder: str) -> FileData:
    """The official split; images in the order of their ids.

    Raises:
        SetupError: a file or folder is missing, a line is malformed, or the files disagree.
    """
    if not os.path.isdir(os.path.join(folder, "images")):
        raise SetupError(f"DATA.ROOT: no folder {os.path.join(folder, 'images')!r}. Expected in {folder!r}: {LAYOUT}.")
    paths = _read_column(folder, "images.txt")
    labels = _same_ids(paths, _read_numbers(folder, "image_class_labels.txt"), folder, "image_class_labels.txt")
    in_train = _same_ids(paths, _read_numbers(folder, "train_test_split.txt"), folder, "train_test_split.txt")
    names = _class_names(folder, paths, labels)
    splits = [_split(folder, paths, labels, in_train, wanted) for wanted in (1, 0)]
    return FileData(*splits, names)


def _read_column(folder: str, name: str) -> dict[int, str]:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise SetupError(f"DATA.ROOT: no file {path!r}. Expected in {folder!r}: {LAYOUT}.")
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
        raise SetupError(f"{os.path.join(folder, name)}: image {wrong} has {column[wrong]!r}, which is no number.")
    return {key: int(value) for key, value in column.items()}


def _same_ids(paths: dict[int, str], values: dict[int, int], folder: str, name: str) -> dict[int, int]:
    differing = sorted(paths.keys() ^ values.keys())
    if differing:
        missing = name if differing[0] in paths else "images.txt"
        raise SetupError(
            f"DATA.ROOT: images.txt and {name} in {folder!r} disagree about {len(differing)} images: {missing} has no "
            f"image {differing[0]}. Unpack the archive anew."
        )
    return values


def _class_names(folder: str, paths: dict[int, str], labels: dict[int, int]) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for image, label in labels.items():
        name = os.path.dirname(paths[image])
        if names.setdefault(label, name) != name:
            raise SetupError(
                f"DATA.ROOT: in {folder!r}, class {label} of image_class_labels.txt is {names[label]!r} and, for image "
                f"{image}, {name!r} in images.txt. Unpack the archive anew."
            )
    if len(names) < 2 or sorted(names) != list(range(1, len(names) + 1)) or len(set(names.values())) < len(names):
        raise SetupError(
            f"DATA.ROOT: image_class_labels.txt in {folder!r} must number at least two classes from 1 without gaps, "
            f"each with a folder of its own; it has {len(names)} numbers up to {max(names, default=0)} for "
            f"{len(set(names.values()))} folders."
        )
    return tuple(names[label] for label in sorted(names))


def _split(
    folder: str, paths: dict[int, str], labels: dict[int, int], in_train: dict[int, int], wanted: int
) -> ImagesOnDisk:
    odd = next((image for image, value in in_train.items() if value not in (0, 1)), None)
    if odd is not None:
        raise SetupError(f"{folder}/train_test_split.txt: image {odd} has {in_train[odd]}, which is neither 0 nor 1.")
    chosen = [image for image in sorted(paths) if in_train[image] == wanted]
    if not chosen:
        raise SetupError(f"{folder}/train_test_split.txt: no image has {wanted}; both splits need images.")
    files = [os.path.join(folder, "images", paths[image]) for image in chosen]
    return ImagesOnDisk(files, torch.tensor([labels[image] - 1 for image in chosen]))
