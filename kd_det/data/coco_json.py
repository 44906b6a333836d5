"""A user's own data sets: COCO instances files given in the configuration or on the command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from kd_det.common.errors import SetupError
from kd_det.data.coco_schema import read_coco_json
from kd_det.data.image_sets import register_image_set

KEY = "DATASETS.COCO_JSON"
OPTION = "--dataset"


def add_dataset_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--dataset NAME=JSON,FOLDER`` or ``NAME=FOLDER/`` to a command line; it may be given several times."""
    parser.add_argument(
        OPTION,
        action="append",
        default=[],
        metavar="NAME=JSON,FOLDER",
        help=f"a data set of your own in COCO format, as one entry of {KEY}; may be given several times. NAME=FOLDER/, "
        "with the slash, is a folder of images without annotations",
    )


def use_datasets(cfg: CfgNode, options: Sequence[str] = ()) -> None:
    """Adds the sets given as ``--dataset`` to ``cfg.DATASETS.COCO_JSON``, in place, and registers all of them.

    To be called in every process that reads the data; registered sets are left unchanged.

    Raises:
        SetupError: see ``register_coco_json`` and ``parse_option``.
    """
    cfg.DATASETS.COCO_JSON = [*cfg.DATASETS.COCO_JSON, *map(parse_option, options)]
    register_coco_json(cfg.DATASETS.COCO_JSON)


def parse_option(text: str) -> list[str]:
    """``name=json,folder`` as [name, json, folder]; ``name=folder/``, images without annotations, as [name, folder].

    Raises:
        SetupError: it does not have this form, or a path has a comma.
    """
    name, _, paths = text.partition("=")
    parts = [name, *paths.split(",")]
    if not all(parts) or (len(parts) != 3 and not _is_folder_alone(parts)):
        raise SetupError(
            f"{OPTION} {text!r} does not have the form name=json,folder, or name=folder/ for images without "
            f"annotations. Paths with a comma go into {KEY} of the configuration."
        )
    return parts


def register_coco_json(entries: Iterable[Any]) -> None:
    """Registers data sets with Detectron2, with their class names in the order of the category ids.

    If the categories list keypoints, their names are registered too, and pairs of left and right for flipping.

    Args:
        entries: each [name, COCO instances JSON, image folder], or [name, image folder with a slash at its end] for
            images without annotations; paths are relative to the working directory. A JSON without "annotations" is
            accepted too: such sets can only be in DATASETS.UNLABELED.

    Raises:
        SetupError: an entry is malformed, its JSON is missing or damaged, its folder is missing, or its name is that of
            a different data set.
    """
    for entry in entries:
        name, json_file, folder = _checked(entry)
        if name in DatasetCatalog.list():
            _check_same(name, json_file, folder)
            continue
        where = f"{KEY} {name!r}"
        content = None if json_file is None else read_coco_json(json_file, where, images_alone=True)
        if not os.path.isdir(folder):
            raise SetupError(f"{where}: there is no image folder {folder!r}. Give the folder of the set's images.")
        if content is not None and "annotations" in content:
            register_coco_instances(name, _metadata(content["categories"], where), json_file, folder)
        else:
            register_image_set(name, folder, json_file, where)


def _is_folder_alone(parts: Sequence[str]) -> bool:
    return len(parts) == 2 and parts[1].endswith("/")


def _checked(entry: Any) -> tuple[str, str | None, str]:
    """Its name, JSON (None: there is none) and folder."""
    are_texts = isinstance(entry, (list, tuple)) and all(isinstance(part, str) and part for part in entry)
    if not are_texts or (len(entry) != 3 and not _is_folder_alone(entry)):
        raise SetupError(
            f"{KEY}: {entry!r} is not an entry of three strings. Write [[name, json, image folder], ...], for instance "
            "[['mine_train', 'train.json', 'images']]; for images without annotations ['more', 'folder/']."
        )
    name, *paths = entry
    *json_file, folder = (os.path.abspath(os.path.expanduser(path)) for path in paths)
    return name, json_file[0] if json_file else None, folder


def _check_same(name: str, json_file: str | None, folder: str) -> None:
    known = MetadataCatalog.get(name)
    known_files = [known.get("json_file"), known.get("image_root")]
    if [path and os.path.abspath(path) for path in known_files] != [json_file, folder]:
        raise SetupError(
            f"{KEY}: there is already a data set {name!r} of {known_files[0]!r} and {known_files[1]!r}; this one is of "
            f"{json_file!r} and {folder!r}. Give it another name."
        )


def _metadata(categories: list[dict[str, Any]], where: str) -> dict[str, Any]:
    ordered = sorted(categories, key=lambda category: category["id"])
    metadata: dict[str, Any] = {"thing_classes": [category["name"] for category in ordered]}
    keypoints = [category["keypoints"] for category in ordered if category.get("keypoints")]
    if not keypoints:
        return metadata
    if any(names != keypoints[0] for names in keypoints):
        raise SetupError(f"{where}: its categories have different keypoints; Detectron2 needs one list for a data set.")
    return {**metadata, "keypoint_names": keypoints[0], "keypoint_flip_map": _flip_map(keypoints[0])}


def _flip_map(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs such as ("left_eye", "right_eye"), which a mirrored image swaps."""
    pairs = [(name, re.sub("left", "right", name, count=1)) for name in names if "left" in name]
    return [pair for pair in pairs if pair[1] in names]
