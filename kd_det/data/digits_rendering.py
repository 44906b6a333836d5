"""Draws the digits scenes: scikit-learn's scanned digits, pasted onto crops of its two sample photographs.

A scan belongs to one split only, and so does every column of a photograph: nothing that a detector sees in training
appears in validation. All randomness comes from the caller's generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

SPLITS = ("train", "val")
INK_THRESHOLD = 0.25  # opacity from which a pixel counts as ink; it determines box and area
VAL_SCANS = 500
TRAIN_WIDTH = 0.65  # share of a photograph's columns, from the left, for training


def check_split(split: str) -> None:
    """Raises ``ValueError`` unless ``split`` is one of ``SPLITS``."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {SPLITS}")


@lru_cache(maxsize=4)
def _split_indices(seed: int) -> dict[str, np.ndarray]:
    labels = load_digits().target
    train, val = train_test_split(
        np.arange(len(labels)), test_size=VAL_SCANS, stratify=labels, random_state=seed
    )
    return {"train": np.sort(train), "val": np.sort(val)}


def scans(split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits of one split (1,297 for training, 500 for validation, stratified by class).

    Args:
        split: "train" or "val".
        seed: of the split of the 1,797 scans.

    Returns:
        ink (N, 8, 8), float32 from 0 (paper) to 1 (full ink), and classes (N,), int64.

    Raises:
        ValueError: the split is unknown.
    """
    check_split(split)
    digits = load_digits()
    chosen = _split_indices(seed)[split]
    return (digits.images[chosen] / 16).astype(np.float32), digits.target[chosen].astype(np.int64)


@lru_cache(maxsize=2)
def photographs(split: str) -> tuple[Image.Image, ...]:
    """The part of each sample photograph that belongs to a split, RGB: the left 65 % is for training.

    Raises:
        ValueError: the split is unknown.
    """
    check_split(split)
    parts = []
    for pixels in load_sample_images().images:
        border = round(pixels.shape[1] * TRAIN_WIDTH)
        part = pixels[:, :border] if split == "train" else pixels[:, border:]
        parts.append(Image.fromarray(np.ascontiguousarray(part)))
    return tuple(parts)


@dataclass(frozen=True)
class SceneSettings:
    """The settings of a scene. Pairs are a smallest and a largest value.

    Attributes:
        image_size: height and width of a scene, pixels.
        digits: number of digits tried in a scene; at least one is placed.
        digit_size: height of a pasted scan, pixels; drawn log-uniformly.
        aspect: factor on the scan's width.
        background: factor on the photographs' colours, which dims them.
        contrast: grey levels, of 255, by which the ink is lighter than its surroundings.
        max_overlap: of two boxes, the largest share of the smaller one that the other may cover.
    """

    image_size: int = 128
    digits: tuple[int, int] = (2, 5)
    digit_size: tuple[int, int] = (20, 44)
    aspect: tuple[float, float] = (0.8, 1.2)
    background: tuple[float, float] = (0.3, 0.7)
    contrast: tuple[int, int] = (80, 180)
    max_overlap: float = 0.25


@dataclass(frozen=True)
class PastedDigit:
    """A digit in a scene: its class, its box (x0, y0, x1, y1) in pixels, and its number of ink pixels."""

    label: int
    box: tuple[int, int, int, int]
    area: int


def random_background(
    photos: Sequence[Image.Image], settings: SceneSettings, rng: np.random.Generator
) -> np.ndarray:
    """A random square of a random photograph, scaled to (image_size, image_size, 3), float32, 0 to 255."""
    size = settings.image_size
    photo = photos[int(rng.integers(len(photos)))]
    side = int(rng.integers(size // 2, min(3 * size // 2, *photo.size) + 1))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels * rng.uniform(*settings.background, size=3).astype(np.float32)


def random_opacity(ink: np.ndarray, settings: SceneSettings, rng: np.random.Generator) -> np.ndarray:
    """A scan (8, 8) enlarged to a random size and cropped to its ink: opacity (h, w), float32 in 0 to 1."""
    height = int(np.round(np.exp(rng.uniform(*np.log(settings.digit_size)))))
    width = max(8, int(np.round(height * rng.uniform(*settings.aspect))))
    enlarged = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    opacity = np.clip(np.asarray(enlarged), 0, 1)
    rows, columns = np.nonzero(opacity >= INK_THRESHOLD)
    return opacity[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def paste(
    canvas: np.ndarray,
    opacity: np.ndarray,
    left: int,
    top: int,
    settings: SceneSettings,
    rng: np.random.Generator,
) -> None:
    """Blends light ink of a random colour into ``canvas`` (H, W, 3), in place."""
    height, width = opacity.shape
    patch = canvas[top : top + height, left : left + width]
    surroundings = float(patch.mean())
    tint = rng.uniform(-40, 40, size=3)
    colour = surroundings + rng.uniform(*settings.contrast) + tint - tint.mean()
    patch += opacity[..., None] * (np.clip(colour, 0, 255).astype(np.float32) - patch)


def covered_share(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection of two boxes (x0, y0, x1, y1) over the area of the smaller."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other)]
    return width * height / min(areas)


def draw_scene(
    scans: tuple[np.ndarray, np.ndarray],
    photos: Sequence[Image.Image],
    settings: SceneSettings,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[PastedDigit]]:
    """One scene: pixels (image_size, image_size, 3) uint8 RGB, and the digits in the order of pasting."""
    inks, labels = scans
    canvas = random_background(photos, settings, rng)
    pasted: list[PastedDigit] = []
    for _ in range(int(rng.integers(settings.digits[0], settings.digits[1] + 1))):
        index = int(rng.integers(len(labels)))
        opacity = random_opacity(inks[index], settings, rng)
        height, width = opacity.shape
        left = int(rng.integers(settings.image_size - width + 1))
        top = int(rng.integers(settings.image_size - height + 1))
        box = (left, top, left + width, top + height)
        if any(covered_share(box, digit.box) > settings.max_overlap for digit in pasted):
            continue
        paste(canvas, opacity, left, top, settings, rng)
        area = int((opacity >= INK_THRESHOLD).sum())
        pasted.append(PastedDigit(int(labels[index]), box, area))
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8), pasted
