"""Data sets of images without annotations: a folder of images, or a COCO JSON that lists images alone."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_det.common.errors import SetupError
from kd_det.common.images import SUFFIXES, image_size
from kd_det.data.coco_schema import check_items, read_coco_json, refuse

# Of the metadata: the set has no annotations and no classes.
IMAGES_ALONE = "images_alone"
# In a record of such an image, and of any other that is trained on as one.
UNLABELED = "unlabeled"
# What a record may have of annotations.
LABELS = ("annotations", "sem_seg_file_name", "pan_seg_file_name", "segments_info")


def register_image_set(name: str, image_root: str, json_file: str | None, where: str) -> None:
    """Registers a set of images with Detectron2.

    Args:
        name: of the set.
        image_root: the folder of its images.
        json_file: a COCO JSON that lists them; None: all images in the folder and its sub-folders.
        where: the key and set that named it, for the messages.
    """
    load = partial(folder_records, image_root, where)
    if json_file is not None:
        load = partial(json_records, json_file, image_root, where)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, **{IMAGES_ALONE: True})


def folder_records(folder: str, where: str) -> list[dict[str, Any]]:
    """Detectron2's records of all images in a folder and its sub-folders, by name; their id is their path in it.

    Raises:
        SetupError: there is none, or one cannot be read.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise SetupError(f"{where}: the folder {folder!r} has no image ({', '.join(SUFFIXES)}). Give another.")
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(image_size, map(str, files)))
    return [
        {"file_name": str(path), "image_id": path.relative_to(root).as_posix(), "height": height, "width": width}
        for path, (height, width) in zip(files, sizes, strict=True)
    ]


def json_records(json_file: str, folder: str, where: str) -> list[dict[str, Any]]:
    """Detectron2's records of the images that a COCO JSON lists.

    Raises:
        SetupError: the file is missing or damaged, or images have faults.
    """
    content = read_coco_json(json_file, where, images_alone=True)
    coco = check_items({"images": content["images"], "annotations": [], "categories": []}, json_file)
    refuse(where, json_file, coco.faults)
    if not coco.images:
        raise SetupError(f"{where}: {json_file!r} lists no images.")
    return [
        {
            "file_name": os.path.join(folder, image["file_name"]), "image_id": image["id"],
            "height": image["height"], "width": image["width"],
        }
        for image in sorted(coco.images, key=lambda image: image["id"])
    ]  # fmt: skip


def without_labels(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without their annotations, marked as those of unlabelled images."""
    return [{**{key: record[key] for key in record if key not in LABELS}, UNLABELED: True} for record in records]
