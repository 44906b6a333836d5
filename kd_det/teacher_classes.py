"""Whether student and teacher have the same classes, or which of them are compared."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from kd_det.class_map import KEY as CLASS_MAP
from kd_det.class_map import ClassMap, class_map
from kd_det.common.errors import SetupError


def shared_classes(cfg: CfgNode, teacher_cfg: CfgNode) -> ClassMap | None:
    """The classes to compare: those of ``KD.TEACHER.CLASS_MAP``, or None for all, in the same order.

    Raises:
        SetupError: without a class map, the networks differ in number or names of classes; with one, its names are
            unknown or those of a network are.
    """
    entries = list(cfg.KD.TEACHER.CLASS_MAP)
    ours, theirs = class_names(cfg), class_names(teacher_cfg)
    if not entries:
        _check_same_number(cfg, teacher_cfg)
        _check_class_names(ours, theirs)
        return None
    for names, config, side in ((ours, cfg, "student"), (theirs, teacher_cfg, "teacher")):
        _check_named(names, config, side)
    return class_map(entries, ours, theirs)


def class_names(cfg: CfgNode) -> list[str] | None:
    """The class names of the first training set, where it is registered and names them; otherwise None."""
    names = cfg.DATASETS.TRAIN
    return MetadataCatalog.get(names[0]).get("thing_classes") if names and names[0] in MetadataCatalog.list() else None


def _check_named(names: list[str] | None, cfg: CfgNode, side: str) -> None:
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if names is None:
        raise SetupError(
            f"{CLASS_MAP} pairs classes by name, but the {side}'s names are not known: its DATASETS.TRAIN is "
            f"{list(cfg.DATASETS.TRAIN)}. Name a registered data set there with its {count} classes "
            "(KD.TEACHER.OPTS for the teacher's)."
        )
    if len(names) != count:
        raise SetupError(
            f"{CLASS_MAP}: the {side} has MODEL.ROI_HEADS.NUM_CLASSES {count}, its data set {cfg.DATASETS.TRAIN[0]!r} "
            f"{len(names)} classes; make them agree."
        )


def _check_same_number(cfg: CfgNode, teacher_cfg: CfgNode) -> None:
    ours, theirs = cfg.MODEL.ROI_HEADS.NUM_CLASSES, teacher_cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if ours != theirs:
        raise SetupError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {ours} for the student and {theirs} for the teacher "
            f"({cfg.KD.TEACHER.CONFIG_FILE}). They must be the same classes: take a teacher trained on them, correct "
            f"the number (KD.TEACHER.OPTS for the teacher's), or pair the classes by name with {CLASS_MAP}."
        )


def _check_class_names(ours: list[str] | None, theirs: list[str] | None) -> None:
    if ours is None or theirs is None or list(ours) == list(theirs):
        return
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    ours_named, theirs_named = (names[first] if first < len(names) else "nothing" for names in (ours, theirs))
    raise SetupError(
        f"DATASETS.TRAIN: class {first} is {ours_named!r} for the student and {theirs_named!r} for the teacher. Logits "
        f"are compared class by class: give both the same classes in the same order, or pair them with {CLASS_MAP}."
    )
