"""Boxes and labels drawn on images, and the training picture of teacher and student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes
from detectron2.utils.visualizer import Visualizer
from torch import Tensor
from torchvision.ops import nms

from kd_det.modeling.regions import SharedRegions, StudentRegions
from kd_det.teacher.classes import ClassMap

SHORT_SIDE = 480  # smaller images are enlarged to this, so that their labels can be read
FONT = 16
TITLE_HEIGHT = 32
GAP = 8


@dataclass(frozen=True)
class Panel:
    """What to draw on an image.

    Attributes:
        title: stands above the image.
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the image.
        labels: N texts.
        colours: N matplotlib colours as RGB tuples from 0 to 1.
    """

    title: str
    boxes: np.ndarray
    labels: Sequence[str]
    colours: Sequence[tuple[float, float, float]]


def side_by_side(image: np.ndarray, panels: Sequence[Panel]) -> np.ndarray:
    """The image once for each panel, with the panel's boxes, from left to right. Uses no random numbers.

    Args:
        image: (H, W, 3) uint8, RGB.
        panels: at least one.

    Returns:
        (H', W', 3) uint8, RGB.
    """
    drawn = [_draw(image, panel) for panel in panels]
    gap = np.full((drawn[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    parts = [part for picture in drawn for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _draw(image: np.ndarray, panel: Panel) -> np.ndarray:
    scale = max(1.0, SHORT_SIDE / min(image.shape[:2]))
    visualizer = Visualizer(image, None, scale=scale)
    # Small objects get labels of half this size; Detectron2's own choice is too small to read on an enlarged image.
    visualizer._default_font_size = max(visualizer._default_font_size, FONT / scale)
    drawn = visualizer.overlay_instances(
        boxes=panel.boxes, labels=list(panel.labels), assigned_colors=list(panel.colours)
    )
    picture = np.ascontiguousarray(drawn.get_image())
    title = np.full((TITLE_HEIGHT, picture.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(title, panel.title, (6, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2, cv2.LINE_AA)
    return np.concatenate((title, picture))


COUNT = 20
OVERLAP = 0.5  # of two proposals that overlap more, one is drawn
AGREE, DIFFER = (0.2, 0.8, 0.35), (1.0, 0.4, 0.35)


@torch.no_grad()
def draw_teacher_and_student(
    image: np.ndarray,
    regions: StudentRegions,
    shared: SharedRegions,
    class_map: ClassMap | None = None,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """The first image of a batch twice: with the teacher's, and with the student's top class on the same proposals.

    Shown are up to 20 proposals in which a network sees an object, those first of which the teacher is surest; green
    where both name the same class.

    Args:
        image: (H, W, 3) uint8, RGB, the first image as the student's network gets it.
        regions: a box stage's proposals.
        shared: the logits of both networks on them.
        class_map: what ``shared`` was reduced by.
        class_names: the student's K names; None: the classes' numbers.

    Returns:
        (3, H', W') uint8, RGB.
    """
    boxes, student, teacher = _first_image(regions, shared, class_map)
    shown = _chosen(boxes, student, teacher)
    names = _column_names(teacher.shape[1] - 1, class_map, class_names)
    agree = (teacher.argmax(dim=1) == student.argmax(dim=1))[shown].tolist()
    colours = [AGREE if same else DIFFER for same in agree]
    corners = boxes[shown].float().cpu().numpy()
    panels = [
        Panel(title, corners, _labels(scores[shown], names), colours)
        for title, scores in (("teacher", teacher), ("student", student))
    ]
    return side_by_side(image, panels).transpose(2, 0, 1)


def _first_image(
    regions: StudentRegions, shared: SharedRegions, class_map: ClassMap | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(R, 4) boxes and both networks' (R, C) probabilities on the proposals that the first image has in ``shared``."""
    boxes: Boxes = regions.boxes[0]
    kept = torch.ones(len(boxes), dtype=torch.bool, device=regions.labels.device)
    if class_map is not None:
        kept = class_map.labels(regions.labels[: len(boxes)]) >= 0
    count = int(kept.sum())
    both = (shared.student_logits, shared.teacher_logits)
    student, teacher = (logits[:count].detach().float().softmax(dim=1) for logits in both)
    return boxes.tensor[kept].detach(), student, teacher


def _chosen(boxes: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    background = teacher.shape[1] - 1
    objects = ((teacher.argmax(dim=1) != background) | (student.argmax(dim=1) != background)).nonzero().squeeze(1)
    sure = teacher[objects, :-1].amax(dim=1)
    return objects[nms(boxes[objects].float(), sure, OVERLAP)[:COUNT]]


def _column_names(classes: int, class_map: ClassMap | None, names: Sequence[str] | None) -> list[str]:
    numbers = range(classes) if class_map is None else class_map.student
    named = [str(number) if names is None else names[number] for number in numbers]
    return [*named, "background"]


def _labels(scores: Tensor, names: Sequence[str]) -> list[str]:
    best, index = scores.max(dim=1)
    return [f"{names[i]} {score:.0%}" for i, score in zip(index.tolist(), best.tolist(), strict=True)]
