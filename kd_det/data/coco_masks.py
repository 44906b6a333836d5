"""Masks in COCO files: lists of polygons, and run lengths, as numbers or compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LONGEST = 1e6  # pixels of a polygon's outline; COCO's code needs about 100 bytes for each


def mask_problem(mask: Any, size: tuple[int, int] | None, are_numbers: Callable[[list[Any]], bool]) -> str:
    """What is wrong with a "segmentation", in words that follow "annotations"; "" if it is valid.

    Args:
        mask: not empty.
        size: height and width of the image, if they are known.
        are_numbers: whether a list has only finite numbers of a sensible size.
    """
    if isinstance(mask, dict):
        return _run_length_problem(mask, size)
    if not isinstance(mask, list) or not all(isinstance(part, list) and are_numbers(part) for part in mask):
        return "have a segmentation that is neither a list of polygons [[x, y, x, y, ...], ...] nor run lengths"
    if any(_outline(part) > LONGEST for part in mask):
        return f"have polygons longer than {LONGEST:.0f} pixels"
    return ""


def valid_polygons(polygons: list[list[float]]) -> list[list[float]]:
    """The polygons with three corners or more. Detectron2 drops the others, and objects without a valid one."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def has_mask(annotation: dict[str, Any]) -> bool:
    """Whether an annotation without faults has a valid mask."""
    mask = annotation.get("segmentation")
    return bool(valid_polygons(mask)) if isinstance(mask, list) else bool(mask)


def is_dropped(annotation: dict[str, Any]) -> bool:
    """Whether Detectron2 drops an annotation when it loads it, because it has polygons but no valid one."""
    return bool(annotation.get("segmentation")) and not has_mask(annotation)


def _outline(polygon: list[float]) -> float:
    """The polygon's length in pixels; 0 for most polygons that are short, for speed."""
    if not polygon or len(polygon) * (max(polygon) - min(polygon)) <= LONGEST:
        return 0.0
    corners = np.asarray(polygon[: len(polygon) // 2 * 2], dtype=np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _run_length_problem(mask: dict[str, Any], size: tuple[int, int] | None) -> str:
    counts, shape = mask.get("counts"), mask.get("size")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(side) is int for side in shape):
        return 'have run lengths without a "size" [height, width]'
    if size is not None and tuple(shape) != size:
        return "have run lengths whose size is not that of their image"
    if isinstance(counts, list):
        runs = counts if set(map(type, counts)) <= {int} else None
    else:
        runs = _decompress(counts) if isinstance(counts, str) else None
    if not runs or min(runs) < 0 or sum(runs) != shape[0] * shape[1]:
        return "have run lengths that do not add up to their size"
    return ""


def _decompress(text: str) -> list[int] | None:
    """Decodes COCO's compressed run lengths; None if the text is invalid.

    Each character has 5 bits, the lowest first. From the fourth number on, a number is the difference to the one two
    places before it.
    """
    codes = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    starts = np.concatenate([[0], np.flatnonzero(codes & 32 == 0)[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, np.diff([*starts, len(codes)]))
    if places.max() > 6:  # more than 35 bits
        return None
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    ends = np.append(starts[1:], len(codes)) - 1
    values -= np.where(codes[ends] & 16, 1 << (5 * (places[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values.tolist()
