"""``model.json``: what goes into a trace and comes out, for whoever has the file and not its configuration."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import Instances

from kd_det.teacher.classes import class_names

# What a trace gives, in this order, where the student has it; and what the numbers mean. R detections.
OUTPUTS = {
    "pred_boxes": "(R, 4): x0, y0, x1, y1 in pixels of the input",
    "scores": "(R,): probability, 0 to 1",
    "pred_classes": "(R,): place in classes, from 0",
    "pred_masks": "(R, 1, side, side): probability, 0 to 1, of the cells of a grid over the box",
    "pred_keypoints": "(R, keypoints, 3): x, y in pixels of the input, and score, 0 to 1",
}

EDGES = {"shortest_edge": "pixels; 0 for no resizing", "longest_edge": "pixels"}


def describe(cfg: CfgNode, found: Instances) -> dict[str, Any]:
    """The content of ``model.json``.

    Args:
        cfg: the student's configuration.
        found: what the student finds on an image.

    Returns:
        input, channels, sizes and device; the outputs with their shapes and units; the classes by name, None where the
        names are not known, and their number.
    """
    outputs = [name for name in OUTPUTS if found.has(name)]
    return {
        "input": "(3, height, width), float32, values 0-255, resized but not normalised",
        "channels": cfg.INPUT.FORMAT,
        "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
        "device": cfg.MODEL.DEVICE,
        "outputs": outputs,
        "units": {**EDGES, **{name: OUTPUTS[name] for name in outputs}},
        "boxes": "x0, y0, x1, y1 in pixels of the input",
        "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "classes": _names(cfg),
        "lowest_score": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
    }


def _names(cfg: CfgNode) -> list[str] | None:
    names = class_names(cfg)
    return list(names) if names and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES else None
