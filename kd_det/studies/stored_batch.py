"""Stored knowledge in the batch of the step benchmark: boxes and logits as ``kd-det store-teacher`` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from kd_det.data.stored import STORED, stored_instances
from kd_det.modeling import DistillRCNN
from kd_det.teacher.ensemble import LoadedTeacher, TeacherEnsemble, View
from kd_det.teacher.frozen import FrozenTeacher

BOXES = 128  # of an image, beside its objects' own: the default of kd-det store-teacher


def add_knowledge(model: DistillRCNN, batch: Sequence[dict[str, Any]], cfg: CfgNode) -> None:
    """Gives each image of a batch stored boxes and logits, in place, and lets the model know all classes.

    The teacher is a copy of the student. So the stored boxes are as large as the student's own proposals, as they are
    in training: the size of a box decides what it costs to pool it. A larger teacher would count as peak memory here.

    Args:
        model: built with ``KD.TEACHER.STORED``; the folder is not read.
        batch: square images of one size, with "instances" that have "gt_boxes".
        cfg: the student's configuration.
    """
    assert model.stored is not None
    model.stored = replace(model.stored, find_classes=_all_classes)
    side = batch[0]["image"].shape[-1]
    frozen = FrozenTeacher(deepcopy(model), input_format=cfg.INPUT.FORMAT, dtype=torch.float32)
    loaded = LoadedTeacher(frozen, side, side, (cfg.MODEL.RPN.NMS_THRESH, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST), {})
    ensemble = TeacherEnsemble(
        [loaded], [View(None, flipped=False)], boxes=BOXES, classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        input_format=cfg.INPUT.FORMAT, device=model.device,
    )  # fmt: skip
    as_seen = T.TransformList([T.NoOpTransform()])
    for item in batch:
        known = ensemble.look(item["image"].permute(1, 2, 0).numpy(), item["instances"].gt_boxes.tensor)
        item[STORED] = stored_instances(known, as_seen, item["instances"].image_size)


def _all_classes() -> None:
    return None
