"""The methods that the benchmarks compare: their terms, and their names, order and colours in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable

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
}
TEACHER, STUDENT = "teacher", "student"
ALONE = "student alone"


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
