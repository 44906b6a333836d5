"""Users' own data sets with everything that COCO's evaluation uses: crowds, masks of every form, keypoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

SIZE = (96, 128)  # height, width
KEYPOINTS = ["nose", "left_eye", "right_eye"]


def own_coco(images: int = 6, objects: int = 5, seed: int = 0) -> dict[str, Any]:
    """Three classes (the last without objects), every seventh annotation a crowd."""
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]}
            for number in range(1, images + 1)
        ],
        "categories": [{"id": 3 * i + 1, "name": name} for i, name in enumerate(("ant", "bee", "cow"))],
        "annotations": [],
    }
    content["categories"][0]["keypoints"] = KEYPOINTS
    for number in range(1, images * objects + 1):
        w, h = rng.uniform(8, 60, 2)
        x, y = rng.uniform(0, SIZE[1] - w), rng.uniform(0, SIZE[0] - h)
        points = [[x + w * rng.uniform(), y + h * rng.uniform(), int(rng.integers(0, 3))] for _ in KEYPOINTS]
        content["annotations"].append(
            {
                "id": number,
                "image_id": 1 + number % images,
                "category_id": 1 + 3 * int(rng.integers(2)),
                "bbox": [x, y, w, h],
                "iscrowd": int(number % 7 == 0),
                "segmentation": _mask([x, y, w, h], number % 4),
                "keypoints": [value for point in points for value in point],
            }
        )
    return content


def write_own_coco(folder: Path, content: dict[str, Any]) -> list[str]:
    """Writes the images and the JSON; returns the paths of the JSON and of the images' folder."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for image in content["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    (folder / "set.json").write_text(json.dumps(content))
    return [str(folder / "set.json"), str(folder / "images")]


def _mask(box: list[float], kind: int) -> Any:
    """A polygon, two, and run lengths written out and compressed."""
    x, y, w, h = box
    diamond = [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]
    if kind < 2:
        return [diamond, [x, y, x + w / 3, y, x, y + h / 3]][: kind + 1]
    rle = mask_util.merge(mask_util.frPyObjects([diamond], *SIZE))
    if kind == 2:
        return {"size": list(SIZE), "counts": rle["counts"].decode()}
    flat = mask_util.decode(rle).flatten(order="F").astype(np.int8)
    borders = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(SIZE), "counts": np.diff([0, *borders, flat.size]).tolist()}
