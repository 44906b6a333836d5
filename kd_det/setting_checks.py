"""Checks of settings that are numbers, at start-up."""

from __future__ import annotations

import math

from kd_det.errors import SetupError


def positive(key: str, value: float) -> float:
    """``value`` if it is a finite number above 0; otherwise a ``SetupError`` that names ``key``."""
    if not 0 < value < math.inf:
        raise SetupError(f"{key} is {value}; it must be a finite number above 0.")
    return value


def non_negative(key: str, value: float) -> float:
    """``value`` if it is a finite number, 0 or more; otherwise a ``SetupError`` that names ``key``."""
    if not 0 <= value < math.inf:
        raise SetupError(f"{key} is {value}; it must be a finite number, 0 or more.")
    return value
