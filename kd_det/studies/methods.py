"""The methods that the benchmarks compare: their terms, and their names, order and colours in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kd_det.common.figures import colours

# The name of a method, that of its file in configs/digits_det, to KD.TERMS. All other keys keep their defaults.
METHODS = {
    "kd": ("kd",),
    "dkd": ("dkd",),
    "nkd": ("nkd",),
    "sdd_dkd": ("sdd",),
    "fitnet": ("fitnet",),
    "fgfi": ("fgfi",),
    "pkd": ("pkd",),
    "reviewkd": ("reviewkd",),
    "dkd_reviewkd": ("dkd", "reviewkd"),
}


@dataclass(frozen=True)
class Recipe:
    """How a method trains on the digits scenes.

    Attributes:
        config: its shipped configuration, the name of a file in configs/digits_det without its suffix.
        terms: ``KD.TERMS``.
        overrides: KEY, VALUE, ... that it needs.
        stored: whether it trains from the teacher's stored knowledge.
    """

    config: str
    terms: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    stored: bool = False


# Methods that are another method's file with overrides.
VARIANTS = {
    "stored_kd": Recipe("kd", ("kd",), stored=True),
    "stored_dkd": Recipe("dkd", ("dkd",), stored=True),
    "teacher_boxes": Recipe("dkd", (), ("KD.TERMS", "()"), stored=True),
    "live_dkd_teacher_boxes": Recipe("dkd", ("dkd",), ("KD.TEACHER.PROPOSALS", "True")),
}
# A method that is not listed here is shown by its name.
TITLES = {
    "kd": "KD",
    "dkd": "DKD",
    "nkd": "NKD",
    "sdd_dkd": "SDD-DKD",
    "fitnet": "FitNet",
    "fgfi": "FGFI",
    "pkd": "PKD",
    "reviewkd": "ReviewKD",
    "dkd_reviewkd": "DKD + ReviewKD",
    "stored_kd": "stored KD",
    "stored_dkd": "stored DKD",
    "teacher_boxes": "teacher's boxes",
    "live_dkd_teacher_boxes": "DKD + teacher's boxes",
}
TEACHER, STUDENT = "teacher", "student"
ALONE = "student alone"


def all_methods() -> tuple[str, ...]:
    """The names of all methods."""
    return (*METHODS, *VARIANTS)


def recipe_of(method: str) -> Recipe:
    """How a method trains; a name that is not listed is KD terms joined by "+", with their default weights."""
    if method in METHODS:
        return Recipe(method, METHODS[method])
    terms = tuple(method.split("+"))
    return VARIANTS.get(method) or Recipe("dkd", terms, ("KD.TERMS", str(terms)))


def title(method: str) -> str:
    """A method's name in tables."""
    return TITLES.get(method, method)


def arm_title(arm: str) -> str:
    """The name of the teacher, of the student alone (``STUDENT``), or of the student with a method."""
    if arm == TEACHER:
        return TEACHER
    return ALONE if arm == STUDENT else f"student + {title(arm)}"


def arm_colours(titles: Iterable[str]) -> dict[str, str]:
    """A colour for each of several titles of ``arm_title``.

    A listed method has the same colour in every figure. Those that are not listed get the palette's colours in turn.
    """
    methods = sorted(map(arm_title, TITLES), key=lambda name: name != arm_title("dkd"))  # DKD has the first colour
    fixed = {TEACHER: "#444444", ALONE: "#e07b39"}
    return colours([*methods, *titles], fixed)
