"""Ground truth for unlabelled images: a teacher's detections with a score above the threshold of their class.

Shape legend: N boxes of an image, K classes of the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.layers import batched_nms
from detectron2.structures import Instances
from torch import Tensor

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.setting_checks import class_value
from kd_det.data.image_sets import without_labels
from kd_det.data.knowledge import DETECTION, GROUND_TRUTH, Knowledge, StoredImage
from kd_det.data.stored import PLACE, STORED, StoredDatasetMapper, stored_instances, transformed_boxes

KEY = "KD.UNLABELED.CLASS_THRESHOLDS"


def class_thresholds(cfg: CfgNode, names: Sequence[str] | None) -> Tensor:
    """The threshold of each class, (K,) float32: ``KD.UNLABELED.THRESHOLD`` and ``CLASS_THRESHOLDS``.

    Args:
        cfg: the student's configuration.
        names: the K classes' names; None: they are not known, and are named by their numbers.

    Raises:
        SetupError: there is no class of that name, or it is listed twice.
    """
    known = list(names or map(str, range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)))
    given: dict[str, float] = {}
    for entry in cfg.KD.UNLABELED.CLASS_THRESHOLDS:
        name, value = class_value(KEY, entry)
        if name not in known:
            raise SetupError(
                f"{KEY}: the student has no class {name!r}.{did_you_mean(name, known)} Its classes: {', '.join(known)}."
            )
        if name in given:
            raise SetupError(f"{KEY}: {name!r} is listed twice; give each class one threshold.")
        given[name] = value
    return torch.tensor([given.get(name, cfg.KD.UNLABELED.THRESHOLD) for name in known], dtype=torch.float32)


def stored_pseudo_labels(image: StoredImage, thresholds: Tensor, nms: float) -> tuple[Tensor, Tensor]:
    """The stored detections above the thresholds, best first.

    The score of a detection is its largest class probability. A teacher may have detected one object as several
    classes; its logits say the same class on all these boxes, of which one is kept.

    Args:
        image: stored boxes and log-probabilities.
        thresholds: (K,).
        nms: boxes of a class with a larger IoU are one object.

    Returns:
        boxes (N, 4) in the image's own pixels and classes (N,) int64.
    """
    detections = image.kinds == DETECTION
    boxes = image.boxes[detections]
    scores, classes = image.logits[detections, :-1].exp().max(dim=1)
    above = scores > thresholds[classes]
    boxes, scores, classes = boxes[above], scores[above], classes[above]
    kept = batched_nms(boxes, scores, classes, nms)
    return boxes[kept], classes[kept]


class UnlabeledDatasetMapper(StoredDatasetMapper):
    """``StoredDatasetMapper`` that adds "instances", the stored detections above the thresholds.

    Ground truth that was stored for the image is not used.

    Args:
        cfg: the student's configuration.
        knowledge: what the records' "knowledge" are indices in.
        thresholds: (K,), of ``class_thresholds``.
    """

    def __init__(self, cfg: CfgNode, knowledge: Knowledge, thresholds: Tensor) -> None:
        super().__init__(cfg, knowledge)
        self.thresholds = thresholds
        self.nms = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST

    def _transform_others(self, record: dict[str, Any], transforms: T.TransformList, shape: tuple[int, int]) -> None:
        everything = self.knowledge.image(record.pop(PLACE))
        found = everything.kinds != GROUND_TRUTH
        image = StoredImage(*(values[found] for values in everything))
        record[STORED] = stored_instances(image, transforms, shape)
        boxes, classes = stored_pseudo_labels(image, self.thresholds, self.nms)
        moved, kept = transformed_boxes(boxes, transforms, shape)
        record["instances"] = Instances(shape, gt_boxes=moved[kept], gt_classes=classes[kept])


def unlabeled_records(names: Sequence[str], knowledge: Knowledge | None) -> list[dict[str, Any]]:
    """The records of the sets without their annotations; with stored knowledge, each has its place in it.

    Raises:
        SetupError: the knowledge lacks an image, or was made for another.
    """
    together = []
    for name in names:
        records = without_labels(DatasetCatalog.get(name))
        if knowledge is not None:
            for record, index in zip(records, knowledge.places(name, records), strict=True):
                record[PLACE] = index
        together += records
    return together
