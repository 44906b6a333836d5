"""The work of ``kd-det import-teacher``: predictions of any detector as stored knowledge."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from kd_det.common.errors import SetupError, one_of
from kd_det.data.checks import checked_records
from kd_det.data.coco_schema import read_coco_json
from kd_det.data.image_sets import IMAGES_ALONE
from kd_det.data.knowledge_format import DETECTION, Recipe, StoredImage, identity, sha256_of
from kd_det.data.predictions import SCORES, Detections, read_predictions
from kd_det.engine.knowledge import as_it_is, check_storing_options, only_command, student_names, write_knowledge
from kd_det.engine.setup import read_setup
from kd_det.teacher.classes import CLASS_MAP, ClassMap, class_map, compare_classes
from kd_det.teacher.ensemble import in_student_classes

logger = logging.getLogger(__name__)

# As a logit: a class map may leave only classes without mass, and their softmax must not be nan.
LEAST = -1e3


def import_teacher(args: argparse.Namespace) -> None:
    """The work of ``kd-det import-teacher``.

    Args:
        args: of ``kd_det.engine.commands.import_teacher``.

    Raises:
        SetupError: an option is not valid, or predictions are: see ``kd_det.data.predictions.read_predictions``.
    """
    one_of("--scores", args.scores, SCORES)
    check_storing_options(args)
    cfg = read_setup(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"], args.dataset)
    setup_logger(name="kd_det")
    sets = _chosen_sets(cfg, args.set)
    records = list(chain.from_iterable(sets.values()))
    categories = _categories(args.categories, next(iter(sets)))
    pairs = _pairs(cfg, [category["name"] for category in categories])
    found = read_predictions(args.predictions, categories, records, sigmoid=args.scores == "sigmoid")
    made_of = {
        "imported": {"file": Path(args.predictions).name, "sha256": sha256_of(args.predictions), "scores": args.scores},
        "categories": [category["name"] for category in categories],
        "class_map": list(cfg.KD.TEACHER.CLASS_MAP),
        "boxes": args.boxes,
    }
    shared = pairs.student if pairs is not None and pairs.partial else None
    recipe = Recipe(student_names(cfg), shared, args.top_k, args.dtype, made_of)
    empty = Detections(torch.zeros(0, 4), torch.zeros(0, len(categories) + 1))

    def look(item: dict[str, Any]) -> StoredImage:
        boxes, probabilities = found.get(identity(item)[0], empty)
        logits = in_student_classes(probabilities[: args.boxes].log().clamp(min=LEAST), pairs)
        return StoredImage(boxes[: args.boxes], logits, torch.full((len(logits),), DETECTION, dtype=torch.uint8))

    for name, images in sets.items():
        known = sum(identity(record)[0] in found for record in images)
        logger.info("%d of the %d images of %s have predictions", known, len(images), name)
    with only_command(args.output):
        write_knowledge(args, recipe, sets, look, as_it_is, 0)


def _chosen_sets(cfg: CfgNode, given: str) -> dict[str, list[dict[str, Any]]]:
    """The records of the set that was given, or of all that are trained on."""
    names = [given] if given else [*cfg.DATASETS.TRAIN, *cfg.DATASETS.UNLABELED]
    if not names:
        raise SetupError("--set is missing: the configuration has 0 training sets. Name the set of the predictions.")
    key = "--set" if given else "DATASETS.TRAIN or DATASETS.UNLABELED"
    sets = {name: checked_records(key, name) for name in names}
    seen: dict[Any, str] = {}
    for name, records in sets.items():
        for record in records:
            number = identity(record)[0]
            if seen.setdefault(number, name) != name:
                raise SetupError(
                    f"--set is missing: an image of {seen[number]!r} and one of {name!r} have the id {number!r}, and "
                    "predictions name images by their ids. Say which set they are of, or give each image its own id."
                )
    return sets


def _categories(file: str, name: str) -> list[dict[str, Any]]:
    """Those of the predictions, in the order of their ids."""
    metadata = MetadataCatalog.get(name)
    path = file or (None if metadata.get(IMAGES_ALONE) else metadata.get("json_file"))
    if path is None:
        raise SetupError(f"--categories is missing: {name!r} has no categories. Give a COCO JSON that has them.")
    categories = read_coco_json(path, "--categories" if file else f"--set {name!r}")["categories"]
    return sorted(categories, key=lambda category: category["id"])


def _pairs(cfg: CfgNode, theirs: Sequence[str]) -> ClassMap | None:
    """The classes of the predictions and the student's, as ``KD.TEACHER.CLASS_MAP`` pairs them."""
    ours = student_names(cfg)
    if cfg.KD.TEACHER.CLASS_MAP:
        return class_map(cfg.KD.TEACHER.CLASS_MAP, ours, theirs)
    comparison = compare_classes(ours, theirs)
    if not comparison.fits:
        value = f" to {comparison.suggestion}" if comparison.suggestion else ""
        raise SetupError(
            f"--categories: as a teacher of the student's classes, {comparison.verdict}. Pair the classes by name: set "
            f"{CLASS_MAP}{value}."
        )
    return None
