"""Detections of any detector in COCO's result format, checked, and as class log-probabilities.

Shape legend: N detections of an image, K classes of the detector that made them.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_det.common.errors import SetupError
from kd_det.data.coco_schema import Fault, are_numbers
from kd_det.data.knowledge_format import identity

SCORES = ("softmax", "sigmoid")
# How far a box may reach beyond its image, in pixels, and a sum of scores beyond 1: rounding. Both are cut off.
BEYOND = 1.0
ABOVE_ONE = 1e-3
# A score of 0 or 1 has no finite logit.
LEAST_SCORE = 1e-6
EXAMPLES = 3


class Detections(NamedTuple):
    """The detections of an image, best first.

    Attributes:
        boxes: (N, 4) float32, XYXY in the image's own pixels.
        probabilities: (N, K+1) float32, the background last.
    """

    boxes: Tensor
    probabilities: Tensor


@dataclass
class _Reader:
    """Checks entries one by one.

    Attributes:
        categories: from a category's id to its class.
        images: from an image's id to its height and width.
        sigmoid: whether full score vectors are sigmoids.
    """

    categories: Mapping[Any, int]
    images: Mapping[Any, tuple[int, int]]
    sigmoid: bool
    faults: dict[str, Fault] = field(default_factory=dict)

    def problems(self, entry: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(entry, dict):
            yield "entries are not JSON objects", entry
            return
        size = _found(self.images, entry.get("image_id"))
        if size is None:
            yield "have an image_id that the data set does not have", entry.get("image_id")
        yield from _box_problems(entry.get("bbox"), size)
        if "category_id" in entry or "scores" not in entry:
            if _found(self.categories, entry.get("category_id")) is None:
                yield "have an unknown category_id", entry.get("category_id")
            if not _are_scores([entry.get("score")]):
                yield "have no score from 0 to 1", entry.get("score")
        if "scores" in entry:
            yield from self._vector_problems(entry["scores"])

    def _vector_problems(self, scores: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(scores, list) or len(scores) != len(self.categories):
            count = len(scores) if isinstance(scores, list) else scores
            yield f"have scores that are not a list of {len(self.categories)}, one for each category", count
        elif not _are_scores(scores):
            yield "have a score outside 0 to 1 in scores", scores
        elif not self.sigmoid and sum(scores) > 1 + ABOVE_ONE:
            yield "have scores with a sum above 1, which no softmax has (are they --scores sigmoid?)", sum(scores)

    def note(self, index: int, what: str, value: Any) -> None:
        fault = self.faults.setdefault(what, Fault(what))
        fault.count += 1
        if fault.count <= EXAMPLES:
            fault.examples.append(f"entry {index}: {reprlib.repr(value)}")

    def row(self, entry: Mapping[str, Any]) -> tuple[float, list[float], Tensor]:
        """Its score, box and probabilities."""
        x, y, width, height = map(float, entry["bbox"])
        rows, columns = self.images[entry["image_id"]]
        box = [max(x, 0.0), max(y, 0.0), min(x + width, float(columns)), min(y + height, float(rows))]
        if "scores" not in entry:
            score, count = float(entry["score"]), len(self.categories)
            spread = torch.full((count + 1,), (1 - score) / count)
            spread[self.categories[entry["category_id"]]] = score
            return score, box, spread
        scores = torch.tensor(entry["scores"], dtype=torch.float64)
        score = float(entry["score"]) if "score" in entry else float(scores.max())
        return score, box, full_probabilities(scores, sigmoid=self.sigmoid)


def full_probabilities(scores: Tensor, *, sigmoid: bool) -> Tensor:
    """The scores (K,) of a detection as probabilities (K+1,), the background last.

    Softmax: the background has what is left of 1. Sigmoid: the softmax of the logits log(p / (1 - p)), with 0 as the
    background's.
    """
    if sigmoid:
        logits = scores.double().clamp(LEAST_SCORE, 1 - LEAST_SCORE).logit()
        return torch.cat([logits, logits.new_zeros(1)]).softmax(0).float()
    rest = (1 - scores.double().sum()).clamp(min=0)
    return torch.cat([scores.double(), rest.view(1)]).float()


def read_predictions(
    path: str, categories: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], *, sigmoid: bool
) -> dict[Any, Detections]:
    """The detections in a COCO result file, by image.

    Args:
        path: a JSON list of {image_id, bbox: [x, y, width, height], category_id, score, scores: [K]}. With ``scores``,
            in the order of the categories' ids, ``category_id`` and ``score`` may be left out.
        categories: of the detector, each with "id"; K in all.
        records: Detectron2's, of the images.
        sigmoid: whether ``scores`` are sigmoids, and not a softmax.

    Returns:
        from the image's id to its detections; images without a detection are left out.

    Raises:
        SetupError: the file cannot be read; or entries have an unknown image or category, a box outside its image or
            without area, or a score outside [0, 1]: they are counted, and the first three of each fault are shown.
    """
    ids = sorted(category["id"] for category in categories)
    images = {number: (height, width) for number, _, height, width in map(identity, records)}
    reader = _Reader({number: index for index, number in enumerate(ids)}, images, sigmoid)
    rows: dict[Any, list[tuple[float, list[float], Tensor]]] = {}
    for index, entry in enumerate(_entries(path)):
        faulty = False
        for what, value in reader.problems(entry):
            reader.note(index, what, value)
            faulty = True
        if not faulty:
            rows.setdefault(entry["image_id"], []).append(reader.row(entry))
    if reader.faults:
        listed = "; ".join(map(str, reader.faults.values()))
        raise SetupError(f"{path!r}: {listed}. Correct these predictions or remove them; nothing was written.")
    return {number: _joined(of_image) for number, of_image in rows.items()}


def _entries(path: str) -> list[Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise SetupError(f"{path!r} cannot be read: {error.strerror}. Give a JSON file of detections.") from error
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path!r} is not JSON ({error!s:.100}). Give a JSON list of detections.") from error
    if not isinstance(content, list) or not content:
        raise SetupError(
            f"{path!r} is not a list of detections. Give COCO's format: [{{image_id, category_id, bbox, score}}]."
        )
    return content


def _joined(rows: list[tuple[float, list[float], Tensor]]) -> Detections:
    rows.sort(key=lambda row: -row[0])
    return Detections(torch.tensor([box for _, box, _ in rows]), torch.stack([each for _, _, each in rows]))


def _box_problems(box: Any, size: tuple[int, int] | None) -> Iterator[tuple[str, Any]]:
    if not isinstance(box, list) or len(box) != 4 or not are_numbers(box):
        yield "have no bbox of four numbers", box
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield "have a box without area", box
    elif size is not None and not (
        min(x, y) >= -BEYOND and x + width <= size[1] + BEYOND and y + height <= size[0] + BEYOND
        and x < size[1] and y < size[0] and x + width > 0 and y + height > 0
    ):  # fmt: skip
        yield (
            "have a box outside its image (boxes are x, y, width, height in its own pixels)",
            [*box, "in", *size[::-1]],
        )


def _are_scores(values: Sequence[Any]) -> bool:
    return {*map(type, values)} <= {int, float} and all(0 <= value <= 1 for value in values)


def _found(known: Mapping[Any, Any], key: Any) -> Any:
    """The value of ``key``, which may be anything that JSON has; None if there is none."""
    return known.get(key) if isinstance(key, (int, float, str)) and not isinstance(key, bool) else None
