"""The two errors that kd_det raises on purpose, and how a command line ends with them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SetupError(ValueError):
    """Something the user gave cannot work. Raised before training starts; the message names key, value and remedy."""


class NonFiniteLossError(FloatingPointError):
    """A loss became nan or infinite; the message names the losses, the iteration and the images of the batch."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the known name nearest to ``name``, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with ``error: ...`` for errors of the user's: code 2, or 1 for a loss that is no number."""
    try:
        yield
    except SetupError as error:
        _end(f"error: {error}", 2)
    except NonFiniteLossError as error:
        _end(f"error: {error}", 1)


def _end(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
