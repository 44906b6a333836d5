"""Checks files of stored proposals before Detectron2 reads them, which would run code in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from kd_det.common.errors import SetupError
from kd_det.common.tensor_files import UnreadableError, read_tensor_file
from kd_det.data.coco_schema import read_coco_json

# The second names are Detectron1's.
PARTS = (("ids", "indexes"), ("boxes", "boxes"), ("objectness_logits", "scores"))


def check_proposals(cfg: CfgNode, splits: tuple[str, ...]) -> None:
    """Checks the files of proposals that ``MODEL.LOAD_PROPOSALS`` needs, one for each data set.

    Args:
        splits: "TRAIN", "TEST".

    Raises:
        SetupError: a file is not a pickle of arrays, its arrays do not match, or it lacks an image of the set.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    for split in splits:
        for path, name in zip(cfg.DATASETS[f"PROPOSAL_FILES_{split}"], cfg.DATASETS[split], strict=True):
            where = f"DATASETS.PROPOSAL_FILES_{split} {path!r}"
            ids = {str(number) for number in _checked_ids(_read(path, where), where)}
            json_file = MetadataCatalog.get(name).get("json_file")
            images = read_coco_json(json_file, f"DATASETS.{split} {name!r}")["images"] if json_file else []
            missing = [image["id"] for image in images if str(image["id"]) not in ids]
            if missing:
                raise SetupError(
                    f"{where} has no proposals for {len(missing)} of the {len(images)} images of {name!r} (id "
                    f"{missing[0]!r:.50}). Give the file that was made for this set."
                )


def _read(path: str, where: str) -> dict[str, Any]:
    try:
        content = read_tensor_file(path)
    except UnreadableError as error:
        raise SetupError(f"{where} cannot be read: {error}. Give a pickle of proposals as NumPy arrays.") from error
    if not isinstance(content, dict):
        raise SetupError(f"{where} contains a {type(content).__name__}; give a pickle of a dict of proposals.")
    return content


def _checked_ids(content: dict[str, Any], where: str) -> list[Any]:
    parts = [content.get(name, content.get(other)) for name, other in PARTS]
    lists = [part for part in parts if isinstance(part, (list, tuple, np.ndarray))]
    if len(lists) < len(PARTS) or len({len(part) for part in lists}) > 1:
        raise SetupError(f"{where}: it must contain lists {', '.join(name for name, _ in PARTS)} of equal length.")
    ids, boxes, scores = lists
    for number, (some, theirs) in enumerate(zip(boxes, scores, strict=True)):
        if not _are_numbers(some, 2) or not _are_numbers(theirs, 1) or some.shape != (len(theirs), 4):
            raise SetupError(
                f"{where}: entry {number} must have boxes (N, 4) and scores (N,), arrays of finite numbers; it has "
                f"{_described(some)} and {_described(theirs)}."
            )
    return list(ids)


def _are_numbers(value: Any, dimensions: int) -> bool:
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.ndim == dimensions
    return is_array and bool(np.isfinite(value).all())


def _described(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
