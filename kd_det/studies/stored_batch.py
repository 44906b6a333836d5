"""Stored knowledge in the batch of the step benchmark: boxes and logits as a folder of ``store-teacher`` gives them.

Shape legend: R stored boxes of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from kd_det.data.stored import LOGITS, STORED
from kd_det.modeling import DistillRCNN

BOXES = 128  # of an image, beside its objects' own: the default of kd-det store-teacher
NEAR_OBJECTS = 0.5  # share of the boxes that are near an object
JITTER = 0.1  # their corners' standard deviation, as a share of the object's size
CONFIDENCE = 6.0  # what a box's own class has more than the others, as a logit


def add_knowledge(model: DistillRCNN, batch: Sequence[dict[str, Any]], classes: int) -> None:
    """Gives each image of a batch stored boxes and logits, in place, and lets the model know all classes.

    Args:
        model: built with ``KD.TEACHER.STORED``; the folder is not read.
        batch: with "instances" that have "gt_boxes" and "gt_classes".
        classes: K.
    """
    assert model.stored is not None
    model.stored = replace(model.stored, find_classes=_all_classes)
    for item in batch:
        item[STORED] = stored_instances(item["instances"], classes)


def stored_instances(objects: Instances, classes: int, boxes: int = BOXES) -> Instances:
    """Random stored knowledge of an image, as ``kd_det.data.stored.StoredDatasetMapper`` gives it.

    Args:
        objects: the image's ground truth, G boxes and classes.
        classes: K.
        boxes: number of boxes beside the objects' own.

    Returns:
        R = G + ``boxes`` boxes: first the objects' own, then the others by their class probabilities. The fields are
        "proposal_boxes", "objectness_logits" (R,) and "stored_logits" (R, K+1), log-probabilities; all float32.
    """
    own: Tensor = objects.gt_boxes.tensor
    whose = torch.randint(len(own), (boxes,))
    near = torch.rand(boxes) < NEAR_OBJECTS
    jitter = JITTER * (own[:, 2:] - own[:, :2])[whose].repeat(1, 2) * torch.randn(boxes, 4)
    height, width = objects.image_size
    anywhere = torch.rand(boxes, 4) * torch.tensor([width, height, width, height])
    ends = torch.where(near[:, None], own[whose] + jitter, anywhere).reshape(boxes, 2, 2)
    others = Boxes(torch.cat([ends.amin(dim=1), ends.amax(dim=1)], dim=1))
    labels = torch.cat([objects.gt_classes, torch.where(near, objects.gt_classes[whose], classes)])
    together = Boxes.cat([objects.gt_boxes, others])
    together.clip(objects.image_size)
    logits = torch.randn(len(labels), classes + 1)
    logits[torch.arange(len(labels)), labels] += CONFIDENCE
    logits = logits.log_softmax(dim=1)
    best_first = logits[len(own) :, -1].argsort() + len(own)
    order = torch.cat([torch.arange(len(own)), best_first])
    stored = Instances(objects.image_size, proposal_boxes=together[order])
    stored.objectness_logits = -torch.logit(logits[order, -1].exp(), eps=1e-6)
    stored.set(LOGITS, logits[order])
    return stored


def _all_classes() -> None:
    return None
