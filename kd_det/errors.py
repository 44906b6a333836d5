"""The two errors that kd_det raises on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SetupError(ValueError):
    """Something the user gave cannot work. Raised before training starts; the message names key, value and remedy."""


class NonFiniteLossError(FloatingPointError):
    """A loss became nan or infinite; the message names the losses, the iteration and the images of the batch."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the known name nearest to ``name``, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
