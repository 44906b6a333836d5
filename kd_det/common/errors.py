"""The errors that kd_det raises on purpose, checks of single settings, and how a command line ends with an error."""

from __future__ import annotations

import difflib
import errno
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What a full disk, a quota, a read-only folder or a failing disk raises. Any other OSError is a bug in the program.
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
MAX_MESSAGE = 500  # characters of another library's message that are shown
# Packages that a command may need but kd_det does not install, and how to get them.
REMEDIES = {
    "detectron2": (
        "Detectron2 is not installed. In a clone of kd_det, run python tools/install_detectron2.py; elsewhere, see "
        "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
    ),
    "classification": "the package classification is not part of the wheel. Run this command in a clone of kd_det.",
}
# The range that the losses accept: see ``kd_det.losses``.
TEMPERATURES = (1e-6, 1e6)


class SetupError(ValueError):
    """A user error, raised before training starts. The message names the key, the value and the remedy."""


class NonFiniteLossError(FloatingPointError):
    """A loss became nan or infinite; the message names the losses, the iteration and the images of the batch."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the known name nearest to ``name``, or "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_line(text: object) -> str:
    """``text`` on one line; the middle of a long one is left out."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE // 2]} ... {line[-MAX_MESSAGE // 2 :]}"


def positive(key: str, value: float) -> float:
    """``value`` if it is a finite number above 0; otherwise a ``SetupError`` that names ``key``."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise SetupError(f"{key} is {value!r:.200}; it must be a finite number above 0.")
    return value


def non_negative(key: str, value: float) -> float:
    """``value`` if it is a finite number, 0 or more; otherwise a ``SetupError`` that names ``key``."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise SetupError(f"{key} is {value!r:.200}; it must be a finite number, 0 or more.")
    return value


def in_range(key: str, value: float, low: float, high: float) -> float:
    """``value`` if it is a number from ``low`` to ``high``; otherwise a ``SetupError`` that names ``key``."""
    if not _is_number(value) or not low <= value <= high:
        raise SetupError(f"{key} is {value!r:.200}; it must be a number from {low:g} to {high:g}.")
    return value


def below_one(key: str, value: float) -> float:
    """``value`` if it is a number, 0 or more and below 1; otherwise a ``SetupError`` that names ``key``."""
    if not _is_number(value) or not 0 <= value < 1:
        raise SetupError(f"{key} is {value!r:.200}; it must be a number, 0 or more and below 1.")
    return value


def temperature(key: str, value: float) -> float:
    """``value`` if the losses accept it as a temperature; otherwise a ``SetupError`` that names ``key``."""
    return in_range(key, value, *TEMPERATURES)


def whole_number(key: str, value: int, least: int, most: int | None = None) -> int:
    """``value`` if it is an integer from ``least`` to ``most`` (None: no limit); otherwise a ``SetupError`` that names
    ``key``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        limits = f", {least} or more" if most is None else f" from {least} to {most}"
        raise SetupError(f"{key} is {value!r:.200}; it must be a whole number{limits}.")
    return value


def one_of(key: str, value: str, allowed: Iterable[str]) -> str:
    """``value`` if it is among ``allowed``; otherwise a ``SetupError`` that names ``key`` and the nearest."""
    allowed = list(allowed)
    if value not in allowed:
        raise SetupError(
            f"{key} is {value!r:.200}; it must be one of {', '.join(allowed)}.{did_you_mean(str(value), allowed)}"
        )
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line on stderr, ``error: ...``, for user errors.

    The exit code is 2 for ``SetupError`` and for a missing package of ``REMEDIES``, 1 for a non-finite loss and for a
    disk error, and 130 for Ctrl-C.
    """
    try:
        yield
    except SetupError as error:
        _end(f"error: {error}", 2)
    except NonFiniteLossError as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        _end("Interrupted.", 130)
    except ModuleNotFoundError as error:
        if error.name not in REMEDIES:
            raise
        _end(f"error: {REMEDIES[error.name]}", 2)
    except BrokenPipeError:  # the reader of the output, such as head, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        named = f" {error.filename!r}" if error.filename else ""
        _end(f"error: {error.strerror}{named}. Free space or change the permissions, or give another folder.", 1)


def _end(message: str, code: int) -> None:
    print(" ".join(map(str.strip, message.splitlines())), file=sys.stderr, flush=True)
    sys.exit(code)
