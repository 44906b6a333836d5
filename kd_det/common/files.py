"""Files that are written whole or not at all, and folders that one run at a time writes to."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kd_det.common.errors import SetupError

logger = logging.getLogger(__name__)

LOCK = ".kd_det.lock"
TEMPORARY = re.compile(r".+\.\d+\.kd_det\.tmp")
# How long a run waits for another one to leave its folder: data workers of a killed run notice after 5 seconds that
# they are alone, and may hold its lock until then.
LOCK_SECONDS = 10.0


def write_atomically(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Writes ``content`` to a temporary name beside ``path``, then renames: readers see the old file or the new one."""
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
        with suppress(OSError):  # it has its name by now, or was never made
            os.remove(temporary)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def remove_temporary_files(folder: str | os.PathLike[str]) -> None:
    """Removes what ``write_atomically`` left directly in ``folder`` when its process was killed.

    To be called while no other process writes there: see ``run_lock``.
    """
    for path in Path(folder).iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


@contextmanager
def run_lock(folder: str | os.PathLike[str], key: str = "OUTPUT_DIR") -> Iterator[None]:
    """Keeps other runs out of ``folder``, which is made if it is not there, while the context lasts.

    The operating system gives the lock back however the process ends; it is waited for ``LOCK_SECONDS``.

    Args:
        key: the configuration key that named the folder, for the message.

    Raises:
        SetupError: another run has the folder, or it cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    path = os.path.join(os.fspath(folder), LOCK)
    try:
        os.makedirs(folder, exist_ok=True)
        lock = FileLock(path, timeout=LOCK_SECONDS)
        lock.acquire()
    except Timeout as error:
        raise SetupError(
            f"{key} {os.fspath(folder)!r} is in use by another run. Wait for its end, stop it, or give another folder."
        ) from error
    except NotImplementedError:  # a file system without locks
        logger.warning("%s %r cannot be locked on this file system; start one run at a time", key, os.fspath(folder))
        yield
        return
    except OSError as error:
        raise SetupError(
            f"{key} {os.fspath(folder)!r} cannot be written to: {error.strerror}. Give a folder that can, with space "
            "for checkpoints."
        ) from error
    try:
        yield
    finally:
        lock.release()
