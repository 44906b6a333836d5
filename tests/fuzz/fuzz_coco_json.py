"""COCO JSON: what passes the schema is then loaded by Detectron2, made into training targets, and evaluated.

python tests/fuzz/fuzz_coco_json.py --cases 1000
"""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from kd_det.data.checks import check_coco_json, check_objects, missing_for_model
from kd_det.data.coco_json import register_coco_json
from kd_det.data.report import compare_sets, examine, format_report
from kd_det.engine.evaluation import FasterCOCOEvaluator
from tests.data.own_coco import KEYPOINTS, SIZE, own_coco
from tests.fuzz import harness
from tests.fuzz.harness import Target, mutated

NAME = "fuzzed"
VALID = own_coco(images=3, objects=4)
HOSTILE = (
    None, True, False, 0, 1, -1, 2, 3.0, 0.5, 10**30, -(10**400), 2**31, 2**63, 1e308, float("inf"), float("nan"), "",
    "1", "a\0b", "\ud800", "x" * 5000, "PPYo0", [], [[]], [1], [1, 2, 3], [0, 0, 5, 5], [1, 2, 3, 4, 5], [None] * 4,
    [True] * 4, [[1, 2, 3, 4, 5, 6]], [[1, 2, 3, 4, 5, 6, 7]], [["a", "b"]], [[1e5, 0, 0, 1e5, 1e5, 1e5] * 300], {},
    {"id": 1}, {"size": list(SIZE), "counts": "PPYo0"}, {"size": [2, 2], "counts": [1, 3]},
    {"size": list(SIZE), "counts": [96 * 128]}, {"size": list(SIZE), "counts": [-1, 96 * 128 + 1]},
    {"size": list(SIZE), "counts": "oooooooooooo0"}, {"size": list(SIZE), "counts": ""},
)  # fmt: skip
PLAUSIBLE = (0, 1, 3.0, -3, 7.5, 50, 96, 128, 4000, 1e4, 1e5, 0.0, -1e5, [1, 2, 30, 40], [[9, 9, 50, 9, 50, 50]], "7")


def make(rng: random.Random, folder: Path) -> Path:
    path = folder / "set.json"
    kind = rng.randrange(10)
    if kind < 6:
        path.write_text(json.dumps(_edited(rng)))
    elif kind < 8:
        path.write_bytes(mutated(json.dumps(VALID).encode(), rng))
    elif kind == 8:
        path.write_bytes(mutated(json.dumps(_edited(rng)).encode(), rng))
    else:
        path.write_bytes(_odd_file(rng))
    return path


def read(path: Path) -> None:
    """What the tools do with a set, from its registration to its evaluation."""
    report = examine(NAME, str(path), str(path.parent))  # reports on faults, and stops at none of them
    format_report(report)
    compare_sets([report, report])
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)
    register_coco_json([[NAME, str(path), str(path.parent)]])
    coco = check_coco_json(str(path), f"DATASETS.TRAIN {NAME!r}")
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(coco.classes)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(KEYPOINTS)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1] * len(KEYPOINTS)
    cfg.INPUT.MASK_FORMAT, cfg.DATASETS.TRAIN = "bitmask", (NAME,)
    tasks = {"bbox": True}
    for task, key in (("segm", "MASK_ON"), ("keypoints", "KEYPOINT_ON")):
        cfg.MODEL[key] = True
        tasks[task] = not any(missing_for_model(cfg, NAME, coco, trains=True, evaluates=True))
        cfg.MODEL[key] = tasks[task]
    check_objects(cfg, [coco])
    with contextlib.redirect_stdout(io.StringIO()):
        records = DatasetCatalog.get(NAME)
        _targets(cfg, records)
        _evaluate(records, [task for task, there in tasks.items() if there])


def _targets(cfg: Any, records: list[dict[str, Any]]) -> None:
    mapper = DatasetMapper(cfg, is_train=True)
    for record in records:
        if (record["height"], record["width"]) == SIZE:  # the mapper refuses an image of another size
            mapper._transform_annotations(record, T.TransformList([T.HFlipTransform(SIZE[1])]), SIZE)


def _evaluate(records: list[dict[str, Any]], tasks: list[str]) -> None:
    evaluator = FasterCOCOEvaluator(NAME, tasks=tasks, distributed=False, kpt_oks_sigmas=[0.1] * len(KEYPOINTS))
    evaluator.reset()
    for record in records:
        size = (int(record["height"]), int(record["width"]))
        found = Instances(size, pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 30.0, 40.0]])), scores=torch.tensor([0.5]))
        found.pred_classes = torch.tensor([0])
        if "segm" in tasks:
            if size != SIZE:
                return
            found.pred_masks = torch.from_numpy(np.eye(*SIZE, dtype=bool)[None])
        found.pred_keypoints = torch.ones(1, len(KEYPOINTS), 3)
        evaluator.process([record], [{"instances": found}])
    evaluator.evaluate()


def _edited(rng: random.Random) -> dict[str, Any]:
    """The valid file with one to three of its parts replaced, removed, renamed, repeated or nested."""
    content = json.loads(json.dumps(VALID))
    for _ in range(rng.randint(1, 3)):
        parent, key = _place(rng, content)
        action = rng.randrange(6)
        if action < 3:
            parent[key] = rng.choice(HOSTILE if rng.random() < 0.5 else PLAUSIBLE)
        elif action == 3:
            del parent[key]
        elif action == 4:
            other, its_key = _place(rng, content)
            parent[key] = json.loads(json.dumps(other[its_key]))
        else:
            parent[key] = [parent[key]]
    return content


def _place(rng: random.Random, content: Any) -> tuple[Any, Any]:
    """A random part of a JSON: the list or dict that has it, and its index or key. Most are of an item."""
    parent, depth = content, 0
    while True:
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        depth += 1
        within = parent[key]
        if not (isinstance(within, (dict, list)) and within) or rng.random() < (0.05, 0.05, 0.3)[min(depth, 3) - 1]:
            return parent, key
        parent = within


def _odd_file(rng: random.Random) -> bytes:
    text = json.dumps(VALID)
    depth = rng.choice((100, 900, 990, 100_000))
    nested = "[" * depth + "]" * depth
    return rng.choice(
        [
            b"", b"null", b"{", b"[]", b'"text"', b"\xff\xfe", text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(),
            nested.encode(), text.replace('"images"', '"images": [], "images"', 1).encode(),
            text.replace('"images"', '"annotations": 3, "images"', 1).encode(),
            text.replace('"bbox": [', '"bbox": [' + "9" * 5000 + ",", 1).encode(),
            text.replace('"bbox": [', '"bbox": [1e999, -1e999, ', 1).encode(),
            text.replace('"image_id": ', '"image_id": ' + "9" * 4000, 1).encode(),
            text.replace('"categories"', f'"info": {nested}, "categories"', 1).encode(),
            text.replace('"bbox": ', f'"bbox": {nested}, "b": ', 1).encode(),
            text.replace('"name": ', f'"supercategory": {nested}, "name": ', 1).encode(),
            text.replace('"segmentation": ', f'"segmentation": {nested}, "s": ', 1).encode(),
        ]
    )  # fmt: skip


TARGET = Target("COCO JSON", make, read)

if __name__ == "__main__":
    harness.main(TARGET)
