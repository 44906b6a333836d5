"""Draws boxes and labels on images, and the training picture of teacher and student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.utils.visualizer import Visualizer
from torch import Tensor
from torchvision.ops import nms

from kd_det.modeling.regions import SharedRegions
from kd_det.teacher.classes import ClassMap

SHORT_SIDE = 480  # pixels; smaller images are enlarged so that their labels can be read
FONT = 16
TITLE_HEIGHT = 32
GAP = 8
COUNT = 20  # proposals in the training picture
OVERLAP = 0.5  # of two proposals with a larger IoU, only one is drawn
AGREE, DIFFER = (0.2, 0.8, 0.35), (1.0, 0.4, 0.35)


@dataclass(frozen=True)
class Panel:
    """What to draw on an image.

    Attributes:
        title: written above the image.
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the image.
        labels: N texts.
        colours: N matplotlib colours as RGB tuples from 0 to 1.
    """

    title: str
    boxes: np.ndarray
    labels: Sequence[str]
    colours: Sequence[tuple[float, float, float]]


def draw_boxes(image: np.ndarray, panel: Panel, *, scale: float | None = None) -> np.ndarray:
    """The image with the panel's boxes and labels, without its title. Uses no random numbers.

    Args:
        image: (H, W, 3) uint8, RGB.
        panel: what to draw.
        scale: factor on the image's size; None enlarges images whose shorter side is below 480 pixels to 480.

    Returns:
        (scale * H, scale * W, 3) uint8, RGB.
    """
    if scale is None:
        scale = max(1.0, SHORT_SIDE / min(image.shape[:2]))
    visualizer = Visualizer(image, None, scale=scale)
    # Small objects get labels of half this size; Detectron2's own choice is too small to read on an enlarged image.
    visualizer._default_font_size = max(visualizer._default_font_size, FONT / scale)
    drawn = visualizer.overlay_instances(
        boxes=panel.boxes, labels=list(panel.labels), assigned_colors=list(panel.colours)
    )
    return np.ascontiguousarray(drawn.get_image())


def side_by_side(image: np.ndarray, panels: Sequence[Panel]) -> np.ndarray:
    """The image once for each panel, with the panel's title and boxes, from left to right. Uses no random numbers.

    Args:
        image: (H, W, 3) uint8, RGB.
        panels: at least one.

    Returns:
        (H', W', 3) uint8, RGB.
    """
    drawn = [_titled(draw_boxes(image, panel), panel.title) for panel in panels]
    gap = np.full((drawn[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    parts = [part for picture in drawn for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    strip = np.full((TITLE_HEIGHT, picture.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(strip, title, (6, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2, cv2.LINE_AA)
    return np.concatenate((strip, picture))


@torch.no_grad()
def draw_teacher_and_student(
    image: np.ndarray,
    shared: SharedRegions,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """The first image of a batch twice: with the teacher's and with the student's top class on the same proposals.

    Shows up to 20 proposals in which either network sees an object, starting with those of which the teacher is most
    certain; green where both networks choose the same class.

    Args:
        image: (H, W, 3) uint8, RGB, the first image as the student's network gets it.
        shared: the proposals of a box stage with both networks' logits.
        class_names: the student's K names; None: the classes' numbers.

    Returns:
        (3, H', W') uint8, RGB.
    """
    count = len(shared.boxes[0])
    boxes = shared.boxes[0].tensor.detach()
    both = (shared.student_logits, shared.teacher_logits)
    student, teacher = (logits[:count].detach().float().softmax(dim=1) for logits in both)
    shown = _chosen(boxes, student, teacher)
    names = _column_names(teacher.shape[1] - 1, shared.classes, class_names)
    agree = (teacher.argmax(dim=1) == student.argmax(dim=1))[shown].tolist()
    colours = [AGREE if same else DIFFER for same in agree]
    corners = boxes[shown].float().cpu().numpy()
    panels = [
        Panel(title, corners, _labels(scores[shown], names), colours)
        for title, scores in (("teacher", teacher), ("student", student))
    ]
    return side_by_side(image, panels).transpose(2, 0, 1)


def _chosen(boxes: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    background = teacher.shape[1] - 1
    objects = ((teacher.argmax(dim=1) != background) | (student.argmax(dim=1) != background)).nonzero().squeeze(1)
    certainty = teacher[objects, :-1].amax(dim=1)
    return objects[nms(boxes[objects].float(), certainty, OVERLAP)[:COUNT]]


def _column_names(classes: int, class_map: ClassMap | None, names: Sequence[str] | None) -> list[str]:
    numbers = range(classes) if class_map is None else class_map.student
    named = [str(number) if names is None else names[number] for number in numbers]
    return [*named, "background"]


def _labels(scores: Tensor, names: Sequence[str]) -> list[str]:
    best, index = scores.max(dim=1)
    return [f"{names[i]} {score:.0%}" for i, score in zip(index.tolist(), best.tolist(), strict=True)]
