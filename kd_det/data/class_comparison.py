"""A data set's classes beside the teacher's, and the ``KD.TEACHER.CLASS_MAP`` that pairs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kd_det.common.errors import did_you_mean


@dataclass(frozen=True)
class ClassComparison:
    """How the teacher's classes stand to the student's.

    Attributes:
        verdict: in words.
        suggestion: what to write into ``KD.TEACHER.CLASS_MAP``; empty if nothing, or nothing can be.
        fits: whether distillation works without a class map.
    """

    verdict: str
    suggestion: list[str]
    fits: bool


def compare_classes(student: Sequence[str], teacher: Sequence[str]) -> ClassComparison:
    """Compares by name; names that differ in case, spaces, hyphens or underscores alone count as the same.

    Args:
        student, teacher: class names in the order of the logits.
    """
    if list(student) == list(teacher):
        return ClassComparison("the teacher has the same classes in the same order", [], fits=True)
    alike = {_key(name): name for name in reversed(teacher)}
    pairs = {name: name if name in teacher else alike.get(_key(name)) for name in student}
    missing = [name for name, other in pairs.items() if other is None]
    renamed = [f"{name}={other}" for name, other in pairs.items() if other not in (None, name)]
    entries = (["*"] if any(name == other for name, other in pairs.items()) else []) + renamed
    if not entries:
        return ClassComparison(f"the teacher has none of the classes{_near(missing, teacher)}", [], fits=False)
    if missing:
        verdict = (
            f"the teacher lacks {len(missing)} of the {len(student)} classes ({', '.join(missing[:5])}); proposals of "
            f"these would not be distilled{_near(missing, teacher)}"
        )
        return ClassComparison(verdict, entries, fits=False)
    verdict = _verdict(list(pairs.values()), teacher)
    return ClassComparison(
        verdict + (f", {len(renamed)} of them under other names" if renamed else ""), entries, fits=False
    )


def _verdict(partners: Sequence[str | None], teacher: Sequence[str]) -> str:
    if len(teacher) > len(partners):
        return f"the teacher has all classes and {len(teacher) - len(partners)} more"
    order = "" if list(partners) == list(teacher) else " in another order"
    return f"the teacher has the same classes{order}"


def _near(missing: list[str], teacher: Sequence[str]) -> str:
    hints = [f"{name!r}:{hint}" for name in missing if (hint := did_you_mean(name, teacher))]
    return f". {'; '.join(hints[:3])} Pair such as \"ours=theirs\"" if hints else ""


def _key(name: str) -> str:
    return "".join(name.lower().split()).replace("_", "").replace("-", "")
