"""Hand-made folders of stored knowledge, and batches that carry it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances

from kd_det.data.knowledge import PROPOSAL, Recipe, StoredImage
from kd_det.data.knowledge_writer import KnowledgeWriter

CLASSES = ("cat", "dog", "owl")
COMMAND = "kd-det store-teacher --output here"


def write_knowledge(
    folder: Path,
    sets: Mapping[str, Sequence[Mapping[str, Any]]],
    image: Callable[[Mapping[str, Any]], StoredImage],
    classes: Sequence[str] = CLASSES,
    shared: tuple[int, ...] | None = None,
    made_of: Mapping[str, Any] | None = None,
) -> str:
    """Writes what ``image`` gives for the records of each data set; the folder's path."""
    recipe = Recipe(tuple(classes), shared, dtype="float32", made_of=made_of or {})
    writer = KnowledgeWriter(str(folder), recipe, sets, command=COMMAND)
    for part in writer.missing():
        writer.write(part, [image(sets[part.dataset][place]) for place in part.positions])
    writer.finish()
    return str(folder)


def empty_knowledge(folder: Path, shared: tuple[int, ...] | None = None) -> str:
    """Knowledge of three classes and no image, for models whose batches are made by hand."""
    return write_knowledge(folder, {}, lambda record: stored_image(torch.zeros(0, 4)), shared=shared)


def stored_image(boxes: torch.Tensor, columns: int = 4, seed: int = 0) -> StoredImage:
    """These boxes with random logits."""
    logits = 2 * torch.randn(len(boxes), columns, generator=torch.Generator().manual_seed(seed))
    return StoredImage(boxes, logits.log_softmax(1), torch.full((len(boxes),), PROPOSAL, dtype=torch.uint8))


def with_stored(
    items: list[dict[str, Any]], boxes: Sequence[torch.Tensor], logits: Sequence[torch.Tensor]
) -> list[dict[str, Any]]:
    """The batch with stored boxes and logits, as the mapper gives them."""
    return [
        {**item, "stored": _instances(item["image"].shape[1:], *content)}
        for item, content in zip(items, zip(boxes, logits, strict=True), strict=True)
    ]


def around_objects(items: list[dict[str, Any]], count: int = 12, seed: int = 9) -> tuple[list, list]:
    """Boxes near the objects of a batch and elsewhere, all different, and random logits on them."""
    rng = torch.Generator().manual_seed(seed)
    boxes, logits = [], []
    for item in items:
        height, width = item["image"].shape[1:]
        truth = item["instances"].gt_boxes.tensor
        near = truth[torch.arange(count // 2) % len(truth)] + 3 * torch.rand(count // 2, 4, generator=rng)
        corner = torch.rand(count - len(near), 2, generator=rng) * torch.tensor([width - 30.0, height - 30.0])
        far = torch.cat([corner, corner + 8 + 20 * torch.rand(len(corner), 2, generator=rng)], dim=1)
        boxes.append(torch.cat([near, far]).clamp(torch.zeros(4), torch.tensor([width, height] * 2).float()))
        logits.append((2 * torch.randn(count, 4, generator=rng)).log_softmax(1))
    return boxes, logits


def _instances(size: Sequence[int], boxes: torch.Tensor, logits: torch.Tensor) -> Instances:
    return Instances(
        tuple(size), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)), stored_logits=logits
    )
