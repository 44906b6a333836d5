"""Checks the data sets of a configuration before anything is trained or evaluated on them.

``kd_det.data.coco_schema`` says what a COCO file must be; here are the checks against the configuration.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.data.coco_masks import has_mask
from kd_det.data.coco_schema import CheckedCoco, check_items, read_coco_json, refuse
from kd_det.data.image_sets import IMAGES_ALONE
from kd_det.data.report import NO_OBJECT, flat_boxes

logger = logging.getLogger(__name__)

COCO_KEYPOINTS = 17  # COCO's evaluation has sigmas for these
NUM_KEYPOINTS = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"


def check_datasets(cfg: CfgNode) -> None:
    """Checks every data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``, and logs one line for each.

    Raises:
        SetupError: a set is not registered; its image folder or JSON is missing or damaged; its JSON has faults (see
            ``kd_det.data.coco_schema``); its number of classes is not ``MODEL.ROI_HEADS.NUM_CLASSES``; it lacks masks
            or keypoints that ``MODEL`` needs; there is no object to train on; or a set has no COCO evaluation.
    """
    if not cfg.DATASETS.TRAIN:
        raise SetupError("DATASETS.TRAIN is empty; name at least one registered data set.")
    contents = [_check_dataset(cfg, "TRAIN", name) for name in cfg.DATASETS.TRAIN]
    known = [coco for coco in contents if coco is not None]
    if len(known) == len(contents):
        check_objects(cfg, known)
    for name in cfg.DATASETS.TEST:
        _check_dataset(cfg, "TEST", name)
    for name in cfg.DATASETS.TEST:
        evaluator = MetadataCatalog.get(name).get("evaluator_type", "coco")
        if evaluator != "coco":
            raise SetupError(
                f"DATASETS.TEST: {name!r} has the evaluator type {evaluator!r}, but only COCO evaluation is available. "
                "Register the set in COCO format (detectron2.data.datasets.register_coco_instances)."
            )


def check_unlabeled(cfg: CfgNode) -> None:
    """Checks every data set in ``DATASETS.UNLABELED``, and logs one line for each; warns of annotations.

    Raises:
        SetupError: a set is not registered, has no image or one without a size, or its first image is missing.
    """
    key = "DATASETS.UNLABELED"
    for name in cfg.DATASETS.UNLABELED:
        records = checked_records(key, name)
        first = records[0]["file_name"]
        if not os.path.isfile(first):
            raise SetupError(f"{key} {name!r}: its first image {first!r} does not exist. Give the right folder.")
        labeled = sum(bool(record.get("annotations")) for record in records)
        if labeled:
            logger.warning("%s: %d images of %r have annotations, which are ignored", key, labeled, name)
        logger.info("%s %r: %d images", key, name, len(records))


def check_coco_json(json_file: str, key: str) -> CheckedCoco:
    """Reads a COCO instances JSON and checks that it has no faults.

    Args:
        json_file: its path.
        key: the configuration key (and set) that named it, for the messages.

    Raises:
        SetupError: the file is missing, is not JSON, lacks a section, lists no images, or has faults.
    """
    content = read_coco_json(json_file, key)
    if not content["images"]:
        raise SetupError(f"{key}: {json_file!r} lists no images.")
    coco = check_items(content, json_file)
    refuse(key, json_file, coco.faults)
    return coco


def check_named(key: str, name: str) -> None:
    """Raises ``SetupError`` unless ``name``, which ``key`` gave, is a registered data set."""
    if name not in DatasetCatalog.list():
        raise SetupError(
            f"{key}: there is no data set {name!r}.{did_you_mean(name, DatasetCatalog.list())} Give a data set of "
            "your own in DATASETS.COCO_JSON, or with --dataset name=json,folder."
        )


def checked_records(key: str, name: str) -> list[dict[str, Any]]:
    """The records of a registered set in Detectron2's format, after a check of its JSON, if it has one.

    Args:
        key: what named the set, for the messages.

    Raises:
        SetupError: there is no such set, or its JSON is missing, damaged or has faults.
    """
    metadata = known_metadata(key, name)
    if metadata.get("json_file") is not None and not metadata.get(IMAGES_ALONE):
        check_coco_json(metadata.json_file, f"{key} {name!r}")
    return DatasetCatalog.get(name)


def known_metadata(key: str, name: str) -> Metadata:
    """The metadata of a registered set. The files of a set that kd_det generates are made first.

    Raises:
        SetupError: there is no such set.
    """
    check_named(key, name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("make") is not None:
        metadata.make()
    return metadata


def _check_dataset(cfg: CfgNode, split: str, name: str) -> CheckedCoco | None:
    """The content of a set; None if it is not in COCO format."""
    key = f"DATASETS.{split}"
    metadata = known_metadata(key, name)
    if metadata.get(IMAGES_ALONE):
        raise SetupError(f"{key}: {name!r} has no annotations; only DATASETS.UNLABELED can name it.")
    if metadata.get("json_file") is None:
        logger.info("%s: %s is not in COCO format; it is not checked", key, name)
        return None
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
    for finding in flat_boxes(coco):
        logger.warning("%s: %s", where, finding.text)
    missing = next(missing_for_model(cfg, name, coco, trains=split == "TRAIN", evaluates=split == "TEST"), None)
    if missing is not None:
        raise SetupError(f"{key}: {missing}.")
    return coco


def missing_for_model(cfg: CfgNode, name: str, coco: CheckedCoco, *, trains: bool, evaluates: bool) -> Iterator[str]:
    """What ``cfg.MODEL`` needs and a registered set lacks, each as one sentence with the remedy.

    Args:
        coco: the content of the set.
        trains, evaluates: what the set is used for.
    """
    found, count = len(coco.classes), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if found != count:
        yield f"{name} has {found} classes but MODEL.ROI_HEADS.NUM_CLASSES is {count}; set it to {found}"
    if cfg.MODEL.MASK_ON:
        yield from _missing_masks(cfg, name, coco, trains=trains, evaluates=evaluates)
    if cfg.MODEL.KEYPOINT_ON:
        yield from _missing_keypoints(cfg, name, coco, trains=trains, evaluates=evaluates)


def check_objects(cfg: CfgNode, contents: Sequence[CheckedCoco]) -> None:
    """Checks that the training sets together have something to train on.

    Args:
        contents: of the sets of ``DATASETS.TRAIN``.

    Raises:
        SetupError: no image has an object, or none has as many visible keypoints as training asks for.
    """
    sets = f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}"
    objects = [item for coco in contents for item in coco.objects]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not any(coco.trained_on for coco in contents):
        raise SetupError(
            f"{sets}: {NO_OBJECT}; all annotations are crowds (iscrowd 1), or have a box without area or no polygon "
            "of three corners. Give objects with iscrowd 0."
        )
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    if cfg.MODEL.KEYPOINT_ON and least > 0:
        visible: Counter[Any] = Counter()
        for item in objects:
            visible[item["image_id"]] += sum(visibility > 0 for visibility in item["keypoints"][2::3])
        if max(visible.values(), default=0) < least:
            raise SetupError(
                f"{sets}: no image has MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE {least} keypoints with a "
                "visibility above 0; lower it, or mark the visible keypoints."
            )


def _missing_masks(cfg: CfgNode, name: str, coco: CheckedCoco, *, trains: bool, evaluates: bool) -> Iterator[str]:
    # Training leaves crowds out; the evaluation uses their masks too.
    unmasked = sum(not has_mask(item) for item in (coco.annotations if evaluates else coco.objects))
    if unmasked:
        yield f"{name}: {unmasked} objects have no segmentation; MODEL.MASK_ON must be False"
    encoded = sum(isinstance(item.get("segmentation"), dict) for item in coco.objects)
    if trains and encoded and cfg.INPUT.MASK_FORMAT == "polygon":
        yield (
            f"{name}: {encoded} objects have run-length masks and INPUT.MASK_FORMAT is 'polygon'; set it to "
            "'bitmask'"
        )


def _missing_keypoints(cfg: CfgNode, name: str, coco: CheckedCoco, *, trains: bool, evaluates: bool) -> Iterator[str]:
    count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    unposed = sum(not item.get("keypoints") for item in coco.objects)
    if unposed:
        yield f"{name}: {unposed} objects have no keypoints; MODEL.KEYPOINT_ON must be False"
    elif evaluates and not coco.objects:
        yield f"{name} has no objects; MODEL.KEYPOINT_ON must be False"
    numbers = [len(item["keypoints"]) // 3 for item in coco.annotations if item.get("keypoints")]
    others = [number for number in numbers if number != count]
    if others:
        yield f"{name}: {len(others)} objects have {others[0]} keypoints and {NUM_KEYPOINTS} is {count}; set it to that"
    names = MetadataCatalog.get(name).get("keypoint_names") or []
    if trains and len(names) != count:
        yield (
            f"{name} has names for {len(names)} keypoints and {NUM_KEYPOINTS} is {count}; list the names as "
            '"keypoints" of a category: a mirrored image swaps left and right by them'
        )
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or COCO_KEYPOINTS
    if evaluates and sigmas != count:
        yield (
            f"{name}: TEST.KEYPOINT_OKS_SIGMAS gives {sigmas} sigmas (COCO's {COCO_KEYPOINTS} if it is empty) and "
            f"{NUM_KEYPOINTS} is {count}; give one for each keypoint, such as 0.05"
        )
