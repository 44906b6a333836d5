"""The stored knowledge that ``KD.TEACHER.STORED`` names: whether it is this student's, and its classes."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from kd_det.checkpoint import local_path
from kd_det.common.errors import SetupError
from kd_det.data.knowledge import Knowledge, open_knowledge
from kd_det.teacher.classes import ClassMap, listed
from kd_det.teacher.config import live_terms, teacher_config

KEY, WEIGHTS = "KD.TEACHER.STORED", "KD.TEACHER.WEIGHTS"


def check_stored(cfg: CfgNode, *, verify: bool = True) -> None:
    """Checks the folder that ``KD.TEACHER.STORED`` names against the configuration, except its images.

    Args:
        verify: compare the shards with their sha256.

    Raises:
        SetupError: the folder is missing, incomplete or damaged; it is for other classes or of another teacher than the
            one that the configuration names; or a term needs the teacher itself and none is named.
    """
    live = live_terms(cfg)
    if live and not cfg.KD.TEACHER.CONFIG_FILE:
        raise SetupError(
            f"KD.TERMS: {', '.join(map(repr, live))} cannot work from {KEY} alone, which has only boxes and class "
            f"logits. Name the teacher itself too, in KD.TEACHER.CONFIG_FILE and {WEIGHTS}, or remove these terms."
        )
    knowledge = open_stored(cfg, verify=verify)
    _check_teacher(cfg, knowledge, live=bool(live) or cfg.KD.TEACHER.PROPOSALS)


def open_stored(cfg: CfgNode, *, verify: bool = False) -> Knowledge:
    """Opens the folder that ``KD.TEACHER.STORED`` names.

    Args:
        verify: compare the shards with their sha256; without it only their sizes.

    Raises:
        SetupError: it is missing, incomplete or damaged, or for other classes than the student's.
    """
    knowledge = open_knowledge(cfg.KD.TEACHER.STORED, KEY, verify=verify)
    for name in set(cfg.DATASETS.TRAIN) & set(MetadataCatalog.list()):
        knowledge.check_classes(MetadataCatalog.get(name).get("thing_classes"), cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return knowledge


def stored_classes(cfg: CfgNode) -> ClassMap | None:
    """The student's classes that the knowledge has, paired with themselves; None: all.

    Raises:
        SetupError: see ``open_stored``.
    """
    knowledge = open_stored(cfg)
    count, shared = len(knowledge.classes), knowledge.shared
    return None if shared is None or len(shared) == count else ClassMap(shared, shared, count, count)


def distilled_stored_classes(knowledge: Knowledge) -> str:
    """One line about the classes that the knowledge has, and those that it lacks."""
    names, shared, where = knowledge.classes, knowledge.shared, f"from {KEY} {knowledge.folder!r}"
    without = [] if shared is None else [name for index, name in enumerate(names) if index not in shared]
    if not without:
        return f"Distilled classes: all {len(names)}, {where}"
    kept = [name for name in names if name not in without]
    return (
        f"Distilled classes: {len(kept)} of the student's {len(names)} ({listed(kept)}), {where}. Not distilled: "
        f"{listed(without)}"
    )


def _check_teacher(cfg: CfgNode, knowledge: Knowledge, *, live: bool) -> None:
    """Compares the teacher that the configuration names, if any, with those that made the knowledge.

    Weights that are not needed and not here are compared by their file's name.
    """
    made_by = [str(teacher["weights"]) for teacher in knowledge.about.get("teachers", [])]
    if not cfg.KD.TEACHER.CONFIG_FILE or not made_by:  # imported predictions: any teacher may give the features
        return
    weights = cfg.KD.TEACHER.WEIGHTS or teacher_config(cfg).MODEL.WEIGHTS
    if os.path.isfile(weights) or live:
        knowledge.check_teacher(WEIGHTS, local_path(weights, WEIGHTS))
    elif os.path.basename(weights) not in map(os.path.basename, made_by):
        raise SetupError(
            f"{KEY} {cfg.KD.TEACHER.STORED!r} was made by the teacher {', '.join(made_by)}, and {WEIGHTS} is "
            f"{weights!r}. Set KD.TEACHER.CONFIG_FILE and {WEIGHTS} to '', since no term needs them; or store that "
            "teacher's knowledge in another folder with kd-det store-teacher."
        )
