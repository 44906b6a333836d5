"""Compares two detectors, of whatever form, on real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling.meta_arch import GeneralizedRCNN
from PIL import Image
from torch import Tensor

from kd_det.common.errors import SetupError
from kd_det.data.mapper import read_image


@dataclass(frozen=True)
class Detections:
    """R detections on an image.

    Attributes:
        boxes: (R, 4) x0, y0, x1, y1 in pixels of the detector's input.
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
    """The detections of ``model`` on an image, an input of ``Detector``; masks are not pasted, boxes not rescaled."""
    (instances,) = model.inference([{"image": image}], do_postprocess=False)
    return Detections(instances.pred_boxes.tensor.cpu(), instances.scores.cpu(), instances.pred_classes.cpu())


def largest_difference(expected: Detections, given: Detections) -> tuple[float, float]:
    """The largest difference of a box coordinate (pixels) and of a score.

    Each detection is compared with the nearest of its class, because detections with equal scores have no fixed order.
    Infinite if the numbers of detections differ or a class is missing.
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


def inputs(cfg: CfgNode, paths: Sequence[str] = ()) -> Iterator[Tensor]:
    """Every image at ``INPUT.MIN_SIZE_TEST`` and at half that size, as inputs of the detector of ``cfg``.

    Args:
        cfg: of the detector.
        paths: image files; empty: the two photographs that come with scikit-learn.

    Yields:
        (3, H, W) float32, values 0-255, channels as in ``INPUT.FORMAT``.

    Raises:
        SetupError: a file cannot be read.
    """
    for pixels in _read(cfg.INPUT.FORMAT, paths):
        shortest = cfg.INPUT.MIN_SIZE_TEST or min(pixels.shape[:2])
        for edge in (shortest, shortest // 2):
            resize = T.ResizeShortestEdge([edge, edge], cfg.INPUT.MAX_SIZE_TEST)
            resized = resize.get_transform(pixels).apply_image(pixels)
            yield torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)), dtype=torch.float32)


def _read(channels: str, paths: Sequence[str]) -> list[np.ndarray]:
    if not paths:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images
        return [convert_PIL_to_numpy(Image.fromarray(photograph), channels) for photograph in photographs]
    try:
        return [read_image(path, channels) for path in paths]
    except (OSError, SetupError) as error:
        raise SetupError(f"--image: {error}. Give image files.") from error
