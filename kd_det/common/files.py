"""Atomic writing of files, and a lock that keeps a folder for one run at a time."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kd_det.common.errors import SetupError

logger = logging.getLogger(__name__)

LOCK = ".kd_det.lock"
TEMPORARY = re.compile(r".+\.\d+\.kd_det\.tmp")
# How long a run waits for another run's lock. The data workers of a killed run may hold the lock for up to 5 seconds,
# until they notice that the run is gone.
LOCK_SECONDS = 10.0


def write_atomically(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Writes ``content`` to a temporary file and renames it: readers of ``path`` see the old file or the new one."""
    temporary = f"{os.fspath(path)}.{os.getpid()}.kd_det.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # a full disk names no file
        raise
    finally:
        with suppress(OSError):  # already renamed, or never created
            os.remove(temporary)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file; an empty dict if the file is missing, damaged or holds something else."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_csv(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> Path:
    """Writes a header and rows as CSV, atomically; returns ``path``."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
    return path


def remove_temporary_files(folder: str | os.PathLike[str]) -> None:
    """Removes the files that killed calls of ``write_atomically`` left directly in ``folder``.

    Call it only while no other process writes there: see ``run_lock``.
    """
    for path in Path(folder).iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


@contextmanager
def run_lock(folder: str | os.PathLike[str], key: str = "OUTPUT_DIR") -> Iterator[None]:
    """Keeps other runs out of ``folder`` while the context lasts.

    The operating system releases the lock however the process ends. Another run waits for it for ``LOCK_SECONDS``.

    Args:
        folder: created if it does not exist.
        key: the configuration key that named the folder, for the message.

    Raises:
        SetupError: another run uses the folder, or it cannot be created or written to.
    """
    from filelock import FileLock, Timeout

    path = os.path.join(os.fspath(folder), LOCK)
    try:
        os.makedirs(folder, exist_ok=True)
        lock = FileLock(path, timeout=LOCK_SECONDS)
        lock.acquire()
    except Timeout as error:
        raise SetupError(
            f"{key} {os.fspath(folder)!r} is in use by another run. Wait until that run ends, stop it, or give another "
            "folder."
        ) from error
    except NotImplementedError:  # a file system without locks
        logger.warning("%s %r cannot be locked on this file system; start one run at a time", key, os.fspath(folder))
        yield
        return
    except OSError as error:
        raise SetupError(
            f"{key} {os.fspath(folder)!r} cannot be written to: {error.strerror}. Give a writable folder with space "
            "for checkpoints."
        ) from error
    try:
        yield
    finally:
        lock.release()
