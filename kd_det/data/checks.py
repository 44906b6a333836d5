"""Looks at the data sets of a configuration before anything is trained on them."""

from __future__ import annotations

import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.data.coco_schema import CheckedCoco, check_items, read_coco_json, refuse
from kd_det.data.model_needs import check_objects, missing_for_model

logger = logging.getLogger(__name__)


def check_datasets(cfg: CfgNode) -> None:
    """Checks every data set that ``DATASETS.TRAIN`` and ``DATASETS.TEST`` name; logs a line on each.

    Raises:
        SetupError: a set is not registered, its image folder or JSON is missing or damaged, its JSON has faults (see
            ``kd_det.data.coco_schema``), it has another number of classes than ``MODEL.ROI_HEADS.NUM_CLASSES`` or lacks
            the masks or keypoints that ``MODEL`` asks for, there is no object to train on, or a set cannot be evaluated
            by COCO's rules.
    """
    if not cfg.DATASETS.TRAIN:
        raise SetupError("DATASETS.TRAIN is empty; name at least one registered data set.")
    reports = [_check_dataset(cfg, "TRAIN", name) for name in cfg.DATASETS.TRAIN]
    if None not in reports:
        check_objects(cfg, [item for report in reports for item in report.objects])
    for name in cfg.DATASETS.TEST:
        _check_dataset(cfg, "TEST", name)
    for name in cfg.DATASETS.TEST:
        evaluator = MetadataCatalog.get(name).get("evaluator_type", "coco")
        if evaluator != "coco":
            raise SetupError(
                f"DATASETS.TEST: {name!r} is evaluated by {evaluator!r}; only COCO evaluation is built in. Register "
                "the set in COCO format (detectron2.data.datasets.register_coco_instances)."
            )


def check_coco_json(json_file: str, key: str) -> CheckedCoco:
    """Reads a COCO instances JSON and checks that it has no faults.

    Args:
        json_file: its path.
        key: the configuration key (and set) that named it, for the messages.

    Raises:
        SetupError: it is missing, no JSON, lacks a section, lists no images, or has faults.
    """
    content = read_coco_json(json_file, key)
    if not content["images"]:
        raise SetupError(f"{key}: {json_file!r} lists no images; there is nothing to work on.")
    coco = check_items(content, json_file)
    refuse(key, json_file, coco.faults)
    return coco


def check_named(key: str, name: str) -> None:
    """Raises ``SetupError`` unless ``name``, which ``key`` gave, is a registered data set."""
    if name not in DatasetCatalog.list():
        raise SetupError(
            f"{key}: there is no data set {name!r}.{did_you_mean(name, DatasetCatalog.list())} Give the files of your "
            "own in DATASETS.COCO_JSON, or with --dataset name=json,folder."
        )


def checked_records(key: str, name: str) -> list[dict[str, Any]]:
    """The records of a registered set, in Detectron2's format; its JSON, if it has one, has been checked.

    Args:
        key: what named the set, for the messages.

    Raises:
        SetupError: there is no such set, or its JSON is missing, damaged or has faults.
    """
    check_named(key, name)
    metadata = _made(name)
    if metadata.get("json_file") is not None:
        check_coco_json(metadata.json_file, f"{key} {name!r}")
    return DatasetCatalog.get(name)


def _made(name: str) -> Metadata:
    """What is known of a set; its files are there if it is one that we make."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("make") is not None:
        metadata.make()
    return metadata


def _check_dataset(cfg: CfgNode, split: str, name: str) -> CheckedCoco | None:
    """What a set holds; None if it is not in COCO format."""
    key = f"DATASETS.{split}"
    check_named(key, name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        logger.info("%s: %s is not in COCO format; it is not checked", key, name)
        return None
    _made(name)
    where = f"{key} {name!r}"
    if not os.path.isdir(metadata.image_root):
        raise SetupError(
            f"{where}: there is no image folder {metadata.image_root!r}. Put the images there, or set the environment "
            f"variable DETECTRON2_DATASETS (now {os.getenv('DETECTRON2_DATASETS', 'datasets')!r}) to the folder above."
        )
    coco = check_coco_json(metadata.json_file, where)
    counts = (len(items) for items in (coco.images, coco.annotations, coco.classes))
    logger.info("%s: %d images, %d objects, %d classes", where, *counts)
    first = os.path.join(metadata.image_root, coco.images[0]["file_name"])
    if not os.path.isfile(first):
        raise SetupError(f"{where}: the JSON's first image {first!r} does not exist; is this the folder of its images?")
    if coco.degenerate:
        logger.warning("%s: %d boxes have no area; they are left out of training", where, len(coco.degenerate))
    missing = next(missing_for_model(cfg, name, coco, trains=split == "TRAIN", evaluates=split == "TEST"), None)
    if missing is not None:
        raise SetupError(f"{key}: {missing}.")
    return coco
