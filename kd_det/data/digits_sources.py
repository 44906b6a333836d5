"""What the digits scenes are made of: scikit-learn's digit scans and sample photographs, split.

A scan belongs to one split only, and so does every column of a photograph: nothing that a detector sees in
training appears in validation.
"""

from functools import lru_cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

SPLITS = ("train", "val")
VAL_SCANS = 500
TRAIN_WIDTH = 0.65  # the share of a photograph's columns, from the left, that training may use


def check_split(split: str) -> None:
    """Raise ValueError unless ``split`` is one of :data:`SPLITS`."""
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
    """Handwritten digits of one split (1,297 for training, 500 for validation, stratified by class).

    Args:
        split: "train" or "val".
        seed: chooses which of the 1,797 scans go to which split; the data set's own seed (0 by default).

    Returns:
        Ink of shape (N, 8, 8), float32 between 0 (paper) and 1 (full ink), and classes of shape (N,), int64.

    Raises:
        ValueError: on an unknown split.
    """
    check_split(split)
    digits = load_digits()
    chosen = _split_indices(seed)[split]
    return (digits.images[chosen] / 16).astype(np.float32), digits.target[chosen].astype(np.int64)


@lru_cache(maxsize=2)
def photographs(split: str) -> tuple[Image.Image, ...]:
    """The part of each sample photograph that a split may use, RGB: the left 65 % trains, the rest validates.

    Raises:
        ValueError: on an unknown split.
    """
    check_split(split)
    parts = []
    for pixels in load_sample_images().images:
        border = round(pixels.shape[1] * TRAIN_WIDTH)
        part = pixels[:, :border] if split == "train" else pixels[:, border:]
        parts.append(Image.fromarray(np.ascontiguousarray(part)))
    return tuple(parts)
