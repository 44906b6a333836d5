"""Pictures side by side: an image with labelled boxes and a title above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer

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
