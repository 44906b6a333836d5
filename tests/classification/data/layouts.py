"""Tiny data sets in the layouts of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from classification.config import load_config


def config(*overrides: object):
    """The defaults with a small batch and no worker processes, then KEY, VALUE, ..."""
    return load_config("", ["DATA.BATCH_SIZE", 8, "DATA.EVAL_BATCH_SIZE", 8, "DATA.WORKERS", 0, *map(str, overrides)])


def picture(seed: int, height: int = 40, width: int = 48) -> Image.Image:
    """Smooth colours that depend on the seed and the position."""
    numbers = np.random.default_rng(seed)
    coarse = Image.fromarray(numbers.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


def write_folders(root: Path, classes=("ant", "bee", "cow"), train: int = 5, val: int = 3) -> Path:
    """``root``/{train,val}/CLASS/*.png with so many images of each class."""
    seed = 0
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(seed).save(folder / f"{number}.png")
                seed += 1
    return root


CUB_CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
# id, class from 1, 1 for training. The ids are out of order and the classes are mixed.
CUB_IMAGES = ((3, 1, 0), (1, 2, 1), (2, 1, 1), (4, 2, 0), (6, 1, 1), (5, 2, 1))


def write_cub(root: Path) -> Path:
    """``root``/CUB_200_2011 with six images of two classes, four of them for training."""
    folder = root / "CUB_200_2011"
    names = {image: f"{CUB_CLASSES[label - 1]}/Bird_{image:04d}.jpg" for image, label, _ in CUB_IMAGES}
    for image, name in names.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(image).save(path)
    lines = {
        "images.txt": [f"{image} {names[image]}" for image, _, _ in CUB_IMAGES],
        "image_class_labels.txt": [f"{image} {label}" for image, label, _ in CUB_IMAGES],
        "train_test_split.txt": [f"{image} {train}" for image, _, train in CUB_IMAGES],
    }
    for file, content in lines.items():
        (folder / file).write_text("\n".join(content) + "\n")
    return folder
