"""What a detector finds on an image, whatever form it has, and how far two of them are apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """R detections of an image.

    Attributes:
        boxes: (R, 4) x0, y0, x1, y1 in pixels of the image that the detector was given.
        scores: (R,) in 0..1.
        classes: (R,) int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


# From an image (3, H, W), float32, values 0-255, channels as in INPUT.FORMAT.
Detector = Callable[[Tensor], Detections]


@torch.no_grad()
def detect(model: GeneralizedRCNN, image: Tensor) -> Detections:
    """What ``model`` finds on an image as ``Detector`` takes it, before its masks are pasted and its boxes rescaled."""
    (instances,) = model.inference([{"image": image}], do_postprocess=False)
    return Detections(instances.pred_boxes.tensor.cpu(), instances.scores.cpu(), instances.pred_classes.cpu())


def largest_difference(expected: Detections, given: Detections) -> tuple[float, float]:
    """The largest difference of a box coordinate (pixels) and of a score.

    Each detection is compared with the nearest of its class, since equal scores may come in another order. Infinite
    where the numbers of detections differ or a class is not found at all.
    """
    if len(expected.scores) != len(given.scores):
        return math.inf, math.inf
    if len(expected.scores) == 0:
        return 0.0, 0.0
    apart = (expected.boxes[:, None] - given.boxes[None]).abs().amax(dim=2)
    apart = apart.masked_fill(expected.classes[:, None] != given.classes[None], math.inf)
    distance, nearest = apart.min(dim=1)
    if torch.isinf(distance).any():
        return math.inf, math.inf
    return float(distance.max()), float((expected.scores - given.scores[nearest]).abs().max())
