"""What a model needs of the data sets that it is trained and evaluated on: classes, masks, keypoints, objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from kd_det.common.errors import SetupError
from kd_det.data.coco_masks import has_mask
from kd_det.data.coco_schema import CheckedCoco

COCO_KEYPOINTS = 17  # COCO's evaluation knows the sigmas of as many
NUM_KEYPOINTS = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"


def missing_for_model(cfg: CfgNode, name: str, coco: CheckedCoco, *, trains: bool, evaluates: bool) -> Iterator[str]:
    """What ``cfg.MODEL`` asks for and a registered set lacks, each as one sentence with the remedy.

    Args:
        coco: what the set holds.
        trains, evaluates: what it is there for.
    """
    found, count = len(coco.classes), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if found != count:
        yield f"{name} has {found} classes but MODEL.ROI_HEADS.NUM_CLASSES is {count}; set it to {found}"
    if cfg.MODEL.MASK_ON:
        yield from _missing_masks(cfg, name, coco, trains=trains, evaluates=evaluates)
    if cfg.MODEL.KEYPOINT_ON:
        yield from _missing_keypoints(cfg, name, coco, trains=trains, evaluates=evaluates)


def check_objects(cfg: CfgNode, objects: list[dict[str, Any]]) -> None:
    """Raises a ``SetupError`` where Detectron2 would find no image to train on among all sets of ``DATASETS.TRAIN``."""
    sets = f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}"
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not objects:
        raise SetupError(
            f"{sets}: no image has an object to train on; there are no annotations but crowds (iscrowd 1) and such "
            "without a polygon of three corners. Give objects with iscrowd 0."
        )
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    if cfg.MODEL.KEYPOINT_ON and least > 0:
        visible: Counter[Any] = Counter()
        for item in objects:
            visible[item["image_id"]] += sum(visibility > 0 for visibility in item["keypoints"][2::3])
        if max(visible.values(), default=0) < least:
            raise SetupError(
                f"{sets}: no image has MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE {least} keypoints with a "
                "visibility above 0; set it lower, or mark what is visible."
            )


def _missing_masks(cfg: CfgNode, name: str, coco: CheckedCoco, *, trains: bool, evaluates: bool) -> Iterator[str]:
    # Training leaves crowds out; the evaluation looks at their masks too.
    unmasked = sum(not has_mask(item) for item in (coco.annotations if evaluates else coco.objects))
    if unmasked:
        yield f"{name}: {unmasked} objects have no segmentation; MODEL.MASK_ON must be False"
    encoded = sum(isinstance(item.get("segmentation"), dict) for item in coco.objects)
    if trains and encoded and cfg.INPUT.MASK_FORMAT == "polygon":
        yield (
            f"{name}: {encoded} objects have run lengths for masks and INPUT.MASK_FORMAT is 'polygon'; set it to "
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
