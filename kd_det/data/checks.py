"""Looks at the data sets of a configuration before anything is trained on them."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_det.common.errors import SetupError, did_you_mean

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetReport:
    """What a COCO JSON holds: counts, the first image, class names in the order of their ids, boxes without area."""

    images: int
    first_file: str
    annotations: int
    classes: tuple[str, ...]
    degenerate: int


def check_datasets(cfg: CfgNode) -> None:
    """Checks every data set that ``DATASETS.TRAIN`` and ``DATASETS.TEST`` name; logs a line on each.

    Raises:
        SetupError: a set is not registered, its image folder or JSON is missing or damaged, its JSON speaks of images
            or categories that it does not define, it has another number of classes than
            ``MODEL.ROI_HEADS.NUM_CLASSES``, or it cannot be evaluated by COCO's rules.
    """
    if not cfg.DATASETS.TRAIN:
        raise SetupError("DATASETS.TRAIN is empty; name at least one registered data set.")
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            _check_dataset(f"DATASETS.{key}", name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    for name in cfg.DATASETS.TEST:
        evaluator = MetadataCatalog.get(name).get("evaluator_type", "coco")
        if evaluator != "coco":
            raise SetupError(
                f"DATASETS.TEST: {name!r} is evaluated by {evaluator!r}; only COCO evaluation is built in. Register "
                "the set in COCO format (detectron2.data.datasets.register_coco_instances)."
            )


def check_coco_json(json_file: str, key: str) -> DatasetReport:
    """Reads a COCO instances JSON and checks that it is consistent.

    Args:
        json_file: its path.
        key: the configuration key (and set) that named it, for the messages.

    Raises:
        SetupError: it is missing, no JSON, lacks a section, or has annotations of unknown images or categories.
    """
    content = read_coco_json(json_file, key)
    if not content["images"]:
        raise SetupError(f"{key}: {json_file!r} lists no images; there is nothing to work on.")
    images = {image["id"] for image in content["images"]}
    categories = {category["id"]: category["name"] for category in content["categories"]}
    annotations = content["annotations"]
    for field, known in (("image_id", images), ("category_id", set(categories))):
        unknown = Counter(item[field] for item in annotations if item[field] not in known)
        if unknown:
            value, count = unknown.most_common(1)[0]
            raise SetupError(
                f"{key}: {json_file}: {sum(unknown.values())} annotations have a {field} that the file does not define "
                f"({value} {count} times). Remove them, or add the {'image' if field == 'image_id' else 'category'}."
            )
    degenerate = sum(_is_degenerate(item) for item in annotations)
    classes = tuple(categories[i] for i in sorted(categories))
    first = content["images"][0]["file_name"]
    return DatasetReport(len(images), first, len(annotations), classes, degenerate)


def check_named(key: str, name: str) -> None:
    """Raises ``SetupError`` unless ``name``, which ``key`` gave, is a registered data set."""
    if name not in DatasetCatalog.list():
        raise SetupError(
            f"{key}: there is no data set {name!r}.{did_you_mean(name, DatasetCatalog.list())} Give the files of your "
            "own in DATASETS.COCO_JSON, or with --dataset name=json,folder."
        )


def _check_dataset(key: str, name: str, num_classes: int) -> None:
    check_named(key, name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        logger.info("%s: %s is not in COCO format; it is not checked", key, name)
        return
    if metadata.get("make") is not None:
        metadata.make()
    where = f"{key} {name!r}"
    if not os.path.isdir(metadata.image_root):
        raise SetupError(
            f"{where}: there is no image folder {metadata.image_root!r}. Put the images there, or set the environment "
            f"variable DETECTRON2_DATASETS (now {os.getenv('DETECTRON2_DATASETS', 'datasets')!r}) to the folder above."
        )
    report = check_coco_json(metadata.json_file, where)
    logger.info("%s: %d images, %d objects, %d classes", where, report.images, report.annotations, len(report.classes))
    first = os.path.join(metadata.image_root, report.first_file)
    if not os.path.isfile(first):
        raise SetupError(f"{where}: the JSON's first image {first!r} does not exist; is this the folder of its images?")
    if report.degenerate:
        logger.warning("%s: %d boxes have no area; they are left out of training", where, report.degenerate)
    if len(report.classes) != num_classes:
        raise SetupError(
            f"{where} has {len(report.classes)} classes but MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}. Set it to "
            f"{len(report.classes)}."
        )


def read_coco_json(json_file: str, key: str) -> dict[str, Any]:
    """The content of a COCO instances JSON.

    Args:
        json_file: its path.
        key: the configuration key (and set) that named it, for the messages.

    Returns:
        a dict with the lists "images", "annotations" and "categories", at least; every category with an id of its own
        and a name.

    Raises:
        SetupError: it is missing, no JSON, or lacks one of these.
    """
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise SetupError(
            f"{key}: there is no annotation file {json_file!r}. Give the right path; for a built-in set put it there, "
            f"or set DETECTRON2_DATASETS (now {os.getenv('DETECTRON2_DATASETS', 'datasets')!r}) to the folder above."
        ) from error
    except OSError as error:
        raise SetupError(f"{key}: {json_file!r} cannot be read ({error}). Give the path of a readable file.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{key}: {json_file!r} is no JSON ({error}); it is damaged, fetch it again.") from error
    sections = ("images", "annotations", "categories")
    missing = [part for part in sections if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise SetupError(f"{key}: {json_file!r} has no section {', '.join(missing)}; it is no COCO instances file.")
    _check_categories(content["categories"], json_file, key)
    return content


def _check_categories(categories: list[Any], json_file: str, key: str) -> None:
    if not categories:
        raise SetupError(f"{key}: {json_file!r} has no categories; list every class with its id and name.")
    for category in categories:
        if not isinstance(category, dict) or not {"id", "name"} <= category.keys():
            raise SetupError(f"{key}: {json_file!r} has the category {category!r}; each needs an id and a name.")
    number, count = Counter(category["id"] for category in categories).most_common(1)[0]
    if count > 1:
        raise SetupError(f"{key}: {json_file!r} has {count} categories with the id {number}; give each its own.")


def _is_degenerate(annotation: dict[str, Any]) -> bool:
    _, _, width, height = annotation.get("bbox", (0, 0, 0, 0))
    return width <= 0 or height <= 0
