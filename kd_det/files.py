"""Writing files so that a crash leaves no half of one."""

from __future__ import annotations

import os


def write_atomically(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Writes ``content`` to a temporary name beside ``path``, then renames: readers see the old file or the new one."""
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
