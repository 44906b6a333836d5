"""A detector's confidence in the objects of a data set.

It is measured on the ground-truth boxes, which correspond to a classifier's images. Background proposals are left out,
although DKD trains mostly on them: nearly all of them are easy, and they would dominate the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from torch import Tensor

from kd_det.common.beta import DETECTION_BETA, MeasuredGaps, confidence_gap
from kd_det.common.errors import SetupError
from kd_det.data.checks import check_named, checked_records
from kd_det.data.mapper import NamingDatasetMapper
from kd_det.teacher.frozen import FrozenTeacher, load_teacher

USE = "for KD.DKD.BETA (T = 1)"
GUIDANCE = f"""Guidance: Zhao et al. 2022 used beta {DETECTION_BETA}, the default of KD.DKD.BETA, for every detector.
There is no published scale from a detector's gap to its beta, so the suggestion does not depend on the measured gap.
Start from it, and also try half and double. Use the gap to compare teachers: the more confident one allows the larger
beta."""


def detector_gaps(cfg: CfgNode, dataset: str, images: int) -> MeasuredGaps:
    """Measures the teacher of ``cfg`` on a data set.

    Args:
        cfg: with ``KD.TEACHER``.
        dataset: the name of a registered data set; empty: the first of ``DATASETS.TRAIN``.
        images: how many images to use, evenly spread over the data set.

    Raises:
        SetupError: the teacher cannot be loaded, or the data set does not exist or has no objects.
    """
    if images < 1:
        raise SetupError(f"--images is {images}; it must be 1 or more.")
    if not dataset and not cfg.DATASETS.TRAIN:
        raise SetupError("DATASETS.TRAIN is empty. Name a registered data set there or with --on.")
    key, name = ("--on", dataset) if dataset else ("DATASETS.TRAIN", cfg.DATASETS.TRAIN[0])
    _check(cfg, key, name)
    teacher = load_teacher(cfg)
    gaps = [confidence_gap(*_compared(teacher, *part)) for part in _answers(cfg, teacher, _spread(key, name, images))]
    gap = torch.cat(gaps) if gaps else torch.zeros(0)
    if len(gap) == 0:
        raise SetupError(f"{key} {name!r}: no image that was used has an object of the teacher's classes.")
    data = f"ground-truth boxes of {name}"
    return MeasuredGaps(cfg.KD.TEACHER.CONFIG_FILE, data, "boxes", gap, USE, beta=DETECTION_BETA, guidance=GUIDANCE)


def _check(cfg: CfgNode, key: str, name: str) -> None:
    check_named(key, name)
    classes = MetadataCatalog.get(name).get("thing_classes")
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if classes is not None and len(classes) != count:
        raise SetupError(
            f"{key} {name!r} has {len(classes)} classes but MODEL.ROI_HEADS.NUM_CLASSES is {count}. Use a data set "
            "with the student's classes."
        )


def _spread(key: str, name: str, images: int) -> list[dict[str, Any]]:
    """Up to ``images`` of the data set's records with objects, evenly spread."""
    records = [
        record
        for record in checked_records(key, name)
        if any(not item.get("iscrowd", 0) for item in record["annotations"])
    ]
    step = max(1.0, len(records) / images)
    return [records[int(number * step)] for number in range(min(images, len(records)))]


def _answers(cfg: CfgNode, teacher: FrozenTeacher, records: list[dict[str, Any]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The teacher's logits on each batch's ground-truth boxes, and the boxes' classes in the student's numbering."""
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    # is_train keeps the ground-truth boxes.
    mapper = NamingDatasetMapper(is_train=True, augmentations=[resize], image_format=cfg.INPUT.FORMAT)
    if not records:
        return
    device = torch.device(cfg.MODEL.DEVICE)
    for batch in build_detection_test_loader(records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS):
        features = teacher.features(batch, cfg.INPUT.FORMAT, device)
        targets = [item["instances"].to(device) for item in batch]
        logits = teacher.box_logits(features, [target.gt_boxes for target in targets])
        yield logits, torch.cat([target.gt_classes for target in targets])


def _compared(teacher: FrozenTeacher, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if teacher.class_map is None:
        return logits, labels
    labels = teacher.class_map.labels(labels)
    return teacher.class_map.teacher_logits(logits)[labels >= 0], labels[labels >= 0]
