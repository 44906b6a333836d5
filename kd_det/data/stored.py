"""Stored knowledge in the training data: each record's place in it, and its boxes on the augmented image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detectron2.structures import Boxes, Instances
from torch import Tensor

from kd_det.data.knowledge import Knowledge, StoredImage
from kd_det.data.mapper import NamingDatasetMapper

# In a record: the index of its image in the knowledge. In the mapped item: the boxes and logits.
PLACE, STORED = "knowledge", "stored"
LOGITS = "stored_logits"
EMPTY = 1e-5  # pixels; Detectron2 removes ground truth with a shorter side


class StoredDatasetMapper(NamingDatasetMapper):
    """``NamingDatasetMapper`` that adds the stored boxes of the image, transformed as the ground truth's are.

    An item has "stored", ``Instances`` of the augmented image, the best first, without the boxes that a crop cut away:
    ``proposal_boxes``, ``objectness_logits`` (R,) and ``stored_logits`` (R, K+1), all float32.

    Args:
        cfg: the student's configuration.
        knowledge: what the records' "knowledge" are indices in; see ``stored_records``.
    """

    def __init__(self, cfg: CfgNode, knowledge: Knowledge) -> None:
        super().__init__(cfg, is_train=True)
        self.knowledge = knowledge

    def _transform_others(self, record: dict[str, Any], transforms: T.TransformList, shape: tuple[int, int]) -> None:
        record[STORED] = stored_instances(self.knowledge.image(record.pop(PLACE)), transforms, shape)


def stored_instances(image: StoredImage, transforms: T.TransformList, shape: tuple[int, int]) -> Instances:
    """The item's "stored": see ``StoredDatasetMapper``.

    Args:
        image: stored boxes and log-probabilities.
        transforms: what was done to the image.
        shape: height and width of the image after that.
    """
    boxes, kept = transformed_boxes(image.boxes, transforms, shape)
    stored, logits = Instances(shape, proposal_boxes=boxes[kept]), image.logits[kept]
    stored.objectness_logits = -torch.logit(logits[:, -1].exp(), eps=1e-6)
    stored.set(LOGITS, logits)
    return stored


def transformed_boxes(boxes: Tensor, transforms: T.TransformList, shape: tuple[int, int]) -> tuple[Boxes, Tensor]:
    """Boxes (N, 4) on the augmented image of this height and width, and which of them were not cut away, (N,) bool."""
    moved = Boxes(torch.from_numpy(transforms.apply_box(boxes.double().numpy())).float())
    moved.clip(shape)
    return moved, moved.nonempty(threshold=EMPTY)


def stored_records(cfg: CfgNode, knowledge: Knowledge) -> list[dict[str, Any]]:
    """The records of ``DATASETS.TRAIN`` that Detectron2 trains on, each with its "knowledge", an index.

    They are those of ``detectron2.data.get_detection_dataset_dicts``, which does not say which set a record is of.

    Raises:
        SetupError: the knowledge lacks an image, or was made for another.
    """
    names = list(cfg.DATASETS.TRAIN)
    sets = [[{**record, PLACE: name} for record in DatasetCatalog.get(name)] for name in names]
    if cfg.MODEL.LOAD_PROPOSALS:
        pairs = zip(sets, cfg.DATASETS.PROPOSAL_FILES_TRAIN, strict=True)
        sets = [load_proposals_into_dataset(records, path) for records, path in pairs]
    records = list(chain.from_iterable(sets))
    if "annotations" in records[0]:
        records = _with_objects(cfg, records, names[0])
    for name in names:
        own = [record for record in records if record[PLACE] == name]
        for record, index in zip(own, knowledge.places(name, own), strict=True):
            record[PLACE] = index
    return records


def _with_objects(cfg: CfgNode, records: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    if cfg.MODEL.KEYPOINT_ON and keypoints > 0:
        records = filter_images_with_few_keypoints(records, keypoints)
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes:
        print_instances_class_histogram(records, classes)
    return list(records)
