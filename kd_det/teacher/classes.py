"""The classes of student and teacher: which are paired, which are compared, and what the log says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.setting_checks import name_pair

CLASS_MAP = "KD.TEACHER.CLASS_MAP"
ALL_COMMON = "*"


@dataclass(frozen=True)
class ClassMap:
    """Pairs of classes that mean the same. The background of one is the background of the other.

    Attributes:
        student, teacher: indices of the paired classes, pair by pair.
        student_classes, teacher_classes: how many classes each network has, the background not counted.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    student_classes: int
    teacher_classes: int

    @property
    def partial(self) -> bool:
        """Whether the student has classes that the teacher lacks."""
        return len(self.student) < self.student_classes

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor]:
        ours = torch.tensor([*self.student, self.student_classes])
        return ours, torch.tensor([*self.teacher, self.teacher_classes])

    @cached_property
    def _new_labels(self) -> Tensor:
        """Old label to its place among the pairs, the background last; -1 for a class without partner."""
        table = torch.full((self.student_classes + 1,), -1)
        table[self._columns[0]] = torch.arange(len(self.student) + 1)
        return table

    def student_logits(self, logits: Tensor) -> Tensor:
        """(R, K+1, ...) to (R, pairs+1, ...)."""
        return logits.index_select(1, self._columns[0].to(logits.device))

    def teacher_logits(self, logits: Tensor) -> Tensor:
        """(R, teacher's K+1, ...) to (R, pairs+1, ...)."""
        return logits.index_select(1, self._columns[1].to(logits.device))

    def labels(self, labels: Tensor) -> Tensor:
        """(R,) 0..K to 0..pairs, -1 where the class has no partner."""
        return self._new_labels.to(labels.device)[labels]


def class_map(entries: Sequence[str], student: Sequence[str], teacher: Sequence[str]) -> ClassMap:
    """The map that ``KD.TEACHER.CLASS_MAP`` describes.

    Args:
        entries: "name" for a class that both call so, "student's name=teacher's name" for one they call differently,
            "*" for all names that both have.
        student, teacher: class names in the order of the logits.

    Raises:
        SetupError: a name is unknown, or stands twice, or nothing is paired.
    """
    pairs: dict[str, str] = {}
    explicit = [name_pair(CLASS_MAP, entry) for entry in entries if entry != ALL_COMMON]
    for ours, theirs in explicit:
        _check_known(ours, student, "student")
        _check_known(theirs, teacher, "teacher")
        if ours in pairs or theirs in pairs.values():
            raise SetupError(f"{CLASS_MAP}: {ours!r} or {theirs!r} stands twice; pair every class once.")
        pairs[ours] = theirs
    if ALL_COMMON in entries:
        taken = set(pairs.values())
        pairs |= {name: name for name in student if name in teacher and name not in pairs and name not in taken}
    if not pairs:
        raise SetupError(
            f"{CLASS_MAP} {list(entries)}: student and teacher have no class name in common; pair them as "
            '"student\'s name=teacher\'s name".'
        )
    ours, theirs = list(student), list(teacher)
    ordered = sorted((ours.index(name), theirs.index(other)) for name, other in pairs.items())
    return ClassMap(
        tuple(index for index, _ in ordered), tuple(index for _, index in ordered), len(student), len(teacher)
    )


def _check_known(name: str, known: Sequence[str], side: str) -> None:
    if name not in known:
        raise SetupError(
            f"{CLASS_MAP}: the {side} has no class {name!r}.{did_you_mean(name, known)} "
            f"Its classes: {', '.join(known)}."
        )


SHOWN = 80  # names on a line of the log: all of COCO's


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


def distilled_classes(cfg: CfgNode, teacher_cfg: CfgNode, classes: ClassMap | None) -> str:
    """One line on what ``shared_classes`` gave: which classes are compared, and which have no partner."""
    ours, theirs = _all_names(cfg), _all_names(teacher_cfg)
    if classes is None:
        return f"Distilled classes: all {len(ours)}, in the same order"
    pairs = [
        ours[i] if ours[i] == theirs[j] else f"{ours[i]}={theirs[j]}"
        for i, j in zip(classes.student, classes.teacher, strict=True)
    ]
    without = [name for index, name in enumerate(ours) if index not in classes.student]
    unused = [name for index, name in enumerate(theirs) if index not in classes.teacher]
    return (
        f"Distilled classes: {len(pairs)} of the student's {len(ours)} ({_listed(pairs)}). Not distilled, without a "
        f"partner: the student's {_listed(without)}; the teacher's {_listed(unused)}"
    )


def unpaired_classes(cfg: CfgNode, teacher_cfg: CfgNode) -> str:
    """One line for terms that compare feature maps alone."""
    ours, theirs = (config.MODEL.ROI_HEADS.NUM_CLASSES for config in (cfg, teacher_cfg))
    unused = f"; {CLASS_MAP} {list(cfg.KD.TEACHER.CLASS_MAP)} is not used" if cfg.KD.TEACHER.CLASS_MAP else ""
    return (
        f"Distilled classes: none. The terms {', '.join(cfg.KD.TERMS)} compare feature maps, so that the student's "
        f"{ours} classes and the teacher's {theirs} need not be the same{unused}"
    )


def class_names(cfg: CfgNode) -> list[str] | None:
    """The class names of the first training set, where it is registered and names them; otherwise None."""
    names = cfg.DATASETS.TRAIN
    return MetadataCatalog.get(names[0]).get("thing_classes") if names and names[0] in MetadataCatalog.list() else None


def _all_names(cfg: CfgNode) -> list[str]:
    """The names of all classes; where they are not known, their numbers."""
    count, names = cfg.MODEL.ROI_HEADS.NUM_CLASSES, class_names(cfg)
    return list(names) if names and len(names) == count else [str(number) for number in range(count)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


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
