"""A COCO 2017 of a few images: COCO's folder layout and its 80 categories, objects drawn as coloured rectangles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

THINGS = [category for category in COCO_CATEGORIES if category["isthing"]]


def make_mini_coco(root: Path, images: int = 4, size: tuple[int, int] = (96, 128)) -> Path:
    """Writes ``root/coco`` with train2017 and val2017; returns ``root``, for DETECTRON2_DATASETS."""
    rng = np.random.default_rng(0)
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / "coco" / split).mkdir()
        content = _draw(root / "coco" / split, images, size, rng)
        annotation_file(root, split).write_text(json.dumps(content))
    return root


def annotation_file(root: Path, split: str) -> Path:
    return root / "coco" / "annotations" / f"instances_{split}.json"


def edit_annotations(root: Path, split: str, edit: Any) -> None:
    """Applies ``edit(content)`` to the JSON of a split, in place."""
    content = json.loads(annotation_file(root, split).read_text())
    edit(content)
    annotation_file(root, split).write_text(json.dumps(content))


def _draw(folder: Path, count: int, size: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    height, width = size
    images, annotations = [], []
    for number in range(1, count + 1):
        name = f"{number:012d}.jpg"
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for _ in range(3):
            w, h = rng.integers(20, 60, 2)
            x, y = rng.integers(0, width - w), rng.integers(0, height - h)
            category = THINGS[rng.integers(len(THINGS))]
            pixels[y : y + h, x : x + w] = category["color"]
            annotations.append(
                _annotation(len(annotations) + 1, number, category["id"], [int(v) for v in (x, y, w, h)])
            )
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    categories = [{"id": c["id"], "name": c["name"]} for c in THINGS]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _annotation(number: int, image: int, category: int, bbox: list[int]) -> dict[str, Any]:
    x, y, w, h = bbox
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": w * h, "iscrowd": 0,
        "segmentation": [polygon],
    }  # fmt: skip
