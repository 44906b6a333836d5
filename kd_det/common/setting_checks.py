"""Checks of single values, and functions that combine checks. A check takes the key's name, for the message, and the
value.

It raises ``SetupError``, which names the key, the value and the remedy. Its return value is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from fvcore.common.registry import Registry

from kd_det.common.errors import SetupError, did_you_mean, in_range, positive, whole_number

Check = Callable[[str, Any], object]

# The largest count: Detectron2 and torch keep counts in 32 bits.
MOST = 2**31 - 1
# The range of numbers that are divided by or squared in float32.
SMALLEST, LARGEST = 1e-6, 1e6

# What a value must be, for each type of default.
TYPES = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list", tuple: "a list",
}  # fmt: skip


def same_type(key: str, value: Any, default: Any) -> None:
    """A value of its default's type. A float may be given as a whole number, a list as a tuple; a default of None
    allows any type."""
    if default is None:
        return
    alike: tuple[type, ...] = (list, tuple) if isinstance(default, (list, tuple)) else (type(default),)
    if isinstance(default, float) and not isinstance(value, bool):
        alike = (int, float)
    if not isinstance(value, alike) or isinstance(value, bool) != isinstance(default, bool):
        raise SetupError(
            f"{key} is {value!r:.200}; it must be {TYPES.get(type(default), type(default).__name__)}, as its default "
            f"{_short(default)} is."
        )


def _short(default: Any) -> str:
    text = repr(default)
    return text if len(text) < 60 else f"{text[:50]} ..."


def count(least: int, most: int = MOST) -> Check:
    """A whole number from ``least`` to ``most``."""

    def check(key: str, value: Any) -> None:
        too_large = isinstance(value, int) and value > most
        whole_number(key, value, least, most if too_large or most < MOST else None)

    return check


channels = count(1, 2**20)


def number(low: float, high: float) -> Check:
    """A number from ``low`` to ``high``."""
    return lambda key, value: in_range(key, value, low, high)


# A share or an IoU.
fraction = number(0.0, 1.0)
# A number that something is divided by.
divisor = number(SMALLEST, LARGEST)


def positive_or_infinite(key: str, value: Any) -> None:
    """A number above 0, which may be infinite."""
    if value != float("inf"):
        positive(key, value)


def choice(*allowed: Any) -> Check:
    """One of the values."""

    def check(key: str, value: Any) -> None:
        if isinstance(value, bool) or value not in allowed:
            known = [each for each in allowed if isinstance(each, str)]
            raise SetupError(
                f"{key} is {value!r:.200}; it must be one of {', '.join(str(each) or repr(each) for each in allowed)}."
                f"{did_you_mean(str(value), known)}"
            )

    return check


def optional(check: Check) -> Check:
    """None, or a value that ``check`` accepts."""
    return lambda key, value: None if value is None else check(key, value)


def either(special: Any, check: Check) -> Check:
    """A value that ``check`` accepts, or ``special``, which has a meaning of its own for this key."""

    def checked(key: str, value: Any) -> None:
        if value == special and not isinstance(value, bool):
            return
        try:
            check(key, value)
        except SetupError as error:
            raise SetupError(f"{str(error).rstrip('.')}, or {special!r}.") from None

    return checked


def each(check: Check, *, least: int = 0, lengths: Collection[int] = ()) -> Check:
    """A list or tuple whose every entry passes ``check``.

    Args:
        least: how many entries it has, at least.
        lengths: how many it may have; empty: any number.
    """

    def checked(key: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)):
            raise SetupError(f"{key} is {value!r:.200}; it must be a list.")
        if len(value) < least or (lengths and len(value) not in lengths):
            wanted = " or ".join(map(str, lengths)) if lengths else f"{least} or more"
            raise SetupError(f"{key} is {value!r:.200}, of length {len(value)}; it must have {wanted} entries.")
        for index, entry in enumerate(value):
            check(f"{key}[{index}]", entry)

    return checked


def string(key: str, value: Any) -> None:
    """A string that is not empty."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise SetupError(f"{key} is {value!r:.200}; it must be a string that is not empty.")


def registered(registry: Registry, *others: str) -> Check:
    """A name in one of Detectron2's registries, or one of ``others``."""

    def check(key: str, value: Any) -> None:
        known = [*(name for name, _ in registry), *others]
        if not isinstance(value, str) or value not in known:
            raise SetupError(
                f"{key} is {value!r:.200}, and nothing is registered under this name.{did_you_mean(str(value), known)} "
                f"Known: {', '.join(sorted(filter(None, known)))}."
            )

    return check


def name_pair(key: str, entry: Any) -> tuple[str, str]:
    """The student's and the teacher's name in "name" (the same for both) or "student's name=teacher's name".

    Raises:
        SetupError: the entry is not a string, or a name is empty.
    """
    ours, sign, theirs = entry.partition("=") if isinstance(entry, str) else ("", "", "")
    pair = (ours.strip(), theirs.strip() if sign else ours.strip())
    if not all(pair):
        raise SetupError(
            f"{key}: {entry!r:.200} lacks a name on one side; write \"name\" or \"student's name=teacher's name\"."
        )
    return pair


def name_pairs(key: str, value: Iterable[Any]) -> None:
    """A list of entries that ``name_pair`` accepts."""
    each(lambda _, entry: name_pair(key, entry))(key, value)


def class_value(key: str, entry: Any) -> tuple[str, float]:
    """The class and the threshold in "class=0.7".

    Raises:
        SetupError: the entry has another form, or the threshold is not a number from 0 up to, but not including, 1.
    """
    name, _, text = entry.rpartition("=") if isinstance(entry, str) else ("", "", "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not name.strip() or not 0 <= value < 1:
        raise SetupError(
            f'{key}: {entry!r:.200} is not a class and a threshold, 0 or more and below 1; write "class=0.7".'
        )
    return name.strip(), value


def overrides(key: str, value: Sequence[Any]) -> None:
    """KEY, VALUE, KEY, VALUE, ...: an even number of entries, whose keys are strings."""
    if len(value) % 2 or not all(isinstance(name, str) and name for name in value[::2]):
        raise SetupError(
            f"{key} is {list(value)!r:.200}; it must be keys and values in turn, such as "
            "['MODEL.ROI_HEADS.NUM_CLASSES', 20]."
        )
