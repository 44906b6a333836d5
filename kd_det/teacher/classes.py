"""The classes of student and teacher: which are paired and compared, and how they differ."""

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
SHOWN = 80  # names on a line of the log: all of COCO's


@dataclass(frozen=True)
class ClassMap:
    """Pairs of a student's class and the teacher's class with the same meaning. The backgrounds are a pair too.

    Attributes:
        student, teacher: indices of the paired classes, pair by pair.
        student_classes, teacher_classes: each network's number of classes, without the background.
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
        """From a label to the index of its pair, the background last; -1 for a class without a partner."""
        table = torch.full((self.student_classes + 1,), -1)
        table[self._columns[0]] = torch.arange(len(self.student) + 1)
        return table

    def student_logits(self, logits: Tensor) -> Tensor:
        """(R, K+1, ...) to (R, pairs+1, ...)."""
        return logits.index_select(1, self._columns[0].to(logits.device))

    def teacher_logits(self, logits: Tensor) -> Tensor:
        """(R, teacher's K+1, ...) to (R, pairs+1, ...)."""
        return logits.index_select(1, self._columns[1].to(logits.device))

    def student_classes_of(self, classes: Tensor) -> Tensor:
        """(R,) the teacher's classes to the student's, -1 for a class without a partner."""
        table = torch.full((self.teacher_classes,), -1, device=classes.device)
        table[list(self.teacher)] = torch.tensor(self.student, device=classes.device)
        return table[classes]

    def labels(self, labels: Tensor) -> Tensor:
        """(R,) 0..K to 0..pairs, -1 for a class without a partner."""
        return self._new_labels.to(labels.device)[labels]


def class_map(entries: Sequence[str], student: Sequence[str], teacher: Sequence[str]) -> ClassMap:
    """The map that ``KD.TEACHER.CLASS_MAP`` describes.

    Args:
        entries: "name" for a class with that name in both, "student's name=teacher's name" for one with different
            names, "*" for all names that both have.
        student, teacher: class names in the order of the logits.

    Raises:
        SetupError: a name is unknown or paired twice, or there are no pairs.
    """
    pairs: dict[str, str] = {}
    explicit = [name_pair(CLASS_MAP, entry) for entry in entries if entry != ALL_COMMON]
    for ours, theirs in explicit:
        _check_known(ours, student, "student")
        _check_known(theirs, teacher, "teacher")
        if ours in pairs or theirs in pairs.values():
            raise SetupError(f"{CLASS_MAP}: {ours!r} or {theirs!r} is listed twice; pair every class once.")
        pairs[ours] = theirs
    if ALL_COMMON in entries:
        taken = set(pairs.values())
        pairs |= {name: name for name in student if name in teacher and name not in pairs and name not in taken}
    if not pairs:
        raise SetupError(
            f"{CLASS_MAP} {list(entries)}: student and teacher have no class name in common; pair them as "
            '"student\'s name=teacher\'s name".'
        )
    indices = sorted((list(student).index(ours), list(teacher).index(theirs)) for ours, theirs in pairs.items())
    return ClassMap(
        tuple(ours for ours, _ in indices), tuple(theirs for _, theirs in indices), len(student), len(teacher)
    )


def _check_known(name: str, known: Sequence[str], side: str) -> None:
    if name not in known:
        raise SetupError(
            f"{CLASS_MAP}: the {side} has no class {name!r}.{did_you_mean(name, known)} "
            f"Its classes: {', '.join(known)}."
        )


@dataclass(frozen=True)
class ClassComparison:
    """How the teacher's classes differ from the student's.

    Attributes:
        verdict: in words.
        suggestion: a value for ``KD.TEACHER.CLASS_MAP``; empty if none is needed or no classes can be paired.
        fits: whether distillation works without a class map.
    """

    verdict: str
    suggestion: list[str]
    fits: bool


def compare_classes(student: Sequence[str], teacher: Sequence[str]) -> ClassComparison:
    """Compares class names. Names that differ only in case, spaces, hyphens or underscores count as the same class.

    Args:
        student, teacher: class names in the order of the logits.
    """
    if list(student) == list(teacher):
        return ClassComparison("the teacher has the same classes in the same order", [], fits=True)
    alike = {_key(name): name for name in reversed(teacher)}
    pairs = {name: name if name in teacher else alike.get(_key(name)) for name in student}
    missing = [name for name, other in pairs.items() if other is None]
    renamed = [f"{name}={other}" for name, other in pairs.items() if other not in (None, name)]
    entries = ([ALL_COMMON] if any(name == other for name, other in pairs.items()) else []) + renamed
    if not entries:
        return ClassComparison(f"the teacher has none of the classes{_near(missing, teacher)}", [], fits=False)
    if missing:
        verdict = (
            f"the teacher lacks {len(missing)} of the {len(student)} classes ({', '.join(missing[:5])}); proposals of "
            f"these would not be distilled{_near(missing, teacher)}"
        )
        return ClassComparison(verdict, entries, fits=False)
    names = f", {len(renamed)} of them under different names" if renamed else ""
    return ClassComparison(_verdict(list(pairs.values()), teacher) + names, entries, fits=False)


def _verdict(partners: Sequence[str | None], teacher: Sequence[str]) -> str:
    if len(teacher) > len(partners):
        return f"the teacher has all classes and {len(teacher) - len(partners)} more"
    order = "" if list(partners) == list(teacher) else " in a different order"
    return f"the teacher has the same classes{order}"


def _near(missing: list[str], teacher: Sequence[str]) -> str:
    hints = [f"{name!r}:{hint}" for name in missing if (hint := did_you_mean(name, teacher))]
    return f". {'; '.join(hints[:3])} Pair them as \"student's name=teacher's name\"" if hints else ""


def _key(name: str) -> str:
    return "".join(name.lower().split()).replace("_", "").replace("-", "")


def shared_classes(cfg: CfgNode, teacher_cfg: CfgNode) -> ClassMap | None:
    """The classes to compare: those of ``KD.TEACHER.CLASS_MAP``; None: all classes, in the same order.

    Raises:
        SetupError: without a class map, the networks' classes differ in number or names; with one, its names are
            unknown, or a network's class names are.
    """
    entries = list(cfg.KD.TEACHER.CLASS_MAP)
    if not entries:
        _check_same_number(cfg, teacher_cfg)
        _check_same_names(class_names(cfg), class_names(teacher_cfg))
        return None
    return class_map(entries, _known_names(cfg, "student"), _known_names(teacher_cfg, "teacher"))


def distilled_classes(cfg: CfgNode, teacher_cfg: CfgNode, classes: ClassMap | None) -> str:
    """One line about what ``shared_classes`` returned: which classes are compared, and which have no partner."""
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
        f"Distilled classes: {len(pairs)} of the student's {len(ours)} ({listed(pairs)}). Not distilled, without a "
        f"partner: the student's {listed(without)}; the teacher's {listed(unused)}"
    )


def unpaired_classes(cfg: CfgNode, teacher_cfg: CfgNode, terms: Sequence[str]) -> str:
    """One line for runs in which the live teacher gives maps to ``terms``, or proposes boxes, but gives no logits."""
    ours, theirs = (config.MODEL.ROI_HEADS.NUM_CLASSES for config in (cfg, teacher_cfg))
    unused = f"; {CLASS_MAP} {list(cfg.KD.TEACHER.CLASS_MAP)} is not used" if cfg.KD.TEACHER.CLASS_MAP else ""
    of_whom = " of the live teacher" if cfg.KD.TEACHER.STORED else ""
    use = f"The terms {', '.join(terms)} compare feature maps" if terms else "It proposes boxes"
    return (
        f"Distilled classes{of_whom}: none. {use}, so that the student's "
        f"{ours} classes and the teacher's {theirs} need not be the same{unused}"
    )


def class_names(cfg: CfgNode) -> list[str] | None:
    """The class names of the first training set; None if it is not registered or has no names."""
    names = cfg.DATASETS.TRAIN
    return MetadataCatalog.get(names[0]).get("thing_classes") if names and names[0] in MetadataCatalog.list() else None


def checked_class_names(cfg: CfgNode) -> list[str] | None:
    """As ``class_names``; None if their number is not ``MODEL.ROI_HEADS.NUM_CLASSES``."""
    names = class_names(cfg)
    return list(names) if names and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES else None


def _all_names(cfg: CfgNode) -> list[str]:
    """The names of all classes; if they are not known, their numbers."""
    return checked_class_names(cfg) or [str(number) for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


def _known_names(cfg: CfgNode, side: str) -> list[str]:
    names, count = class_names(cfg), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if names is None:
        raise SetupError(
            f"{CLASS_MAP} pairs classes by name, but the {side}'s names are not known: its DATASETS.TRAIN is "
            f"{list(cfg.DATASETS.TRAIN)}. Name a registered data set there with its {count} classes "
            "(KD.TEACHER.OPTS for the teacher's)."
        )
    if len(names) != count:
        raise SetupError(
            f"{CLASS_MAP}: the {side} has MODEL.ROI_HEADS.NUM_CLASSES {count}, but its data set "
            f"{cfg.DATASETS.TRAIN[0]!r} has {len(names)} classes; make them agree."
        )
    return names


def _check_same_number(cfg: CfgNode, teacher_cfg: CfgNode) -> None:
    ours, theirs = cfg.MODEL.ROI_HEADS.NUM_CLASSES, teacher_cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if ours != theirs:
        raise SetupError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {ours} for the student and {theirs} for the teacher "
            f"({cfg.KD.TEACHER.CONFIG_FILE}). They must be the same classes: use a teacher trained on them, correct "
            f"the number (KD.TEACHER.OPTS for the teacher's), or pair the classes by name with {CLASS_MAP}."
        )


def _check_same_names(ours: list[str] | None, theirs: list[str] | None) -> None:
    if ours is None or theirs is None:
        return
    comparison = compare_classes(ours, theirs)
    if comparison.fits:
        return
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    ours_named, theirs_named = (names[first] if first < len(names) else "nothing" for names in (ours, theirs))
    value = f" to {comparison.suggestion}" if comparison.suggestion else ""
    raise SetupError(
        f"DATASETS.TRAIN: class {first} is {ours_named!r} for the student and {theirs_named!r} for the teacher. Logits "
        f"are compared class by class, but {comparison.verdict}. Pair the classes by name: set {CLASS_MAP}{value}."
    )
