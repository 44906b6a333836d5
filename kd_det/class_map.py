"""Which of the teacher's classes is which of the student's, where they are not the same in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.settings.checks import name_pair

KEY = "KD.TEACHER.CLASS_MAP"
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
    explicit = [name_pair(KEY, entry) for entry in entries if entry != ALL_COMMON]
    for ours, theirs in explicit:
        _check_known(ours, student, "student")
        _check_known(theirs, teacher, "teacher")
        if ours in pairs or theirs in pairs.values():
            raise SetupError(f"{KEY}: {ours!r} or {theirs!r} stands twice; pair every class once.")
        pairs[ours] = theirs
    if ALL_COMMON in entries:
        taken = set(pairs.values())
        pairs |= {name: name for name in student if name in teacher and name not in pairs and name not in taken}
    if not pairs:
        raise SetupError(
            f"{KEY} {list(entries)}: student and teacher have no class name in common; pair them as "
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
            f"{KEY}: the {side} has no class {name!r}.{did_you_mean(name, known)} Its classes: {', '.join(known)}."
        )
