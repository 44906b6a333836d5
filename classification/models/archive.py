"""Reads the files in a .tar, a .zip or a folder, one at a time, with limits on their sizes.

A few megabytes of an archive can unpack to terabytes. So declared sizes are checked before anything is read, and the
bytes that are read are counted.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from kd_det.common.errors import SetupError, one_line

MIB = 2**20
# The largest published CIFAR-100 teacher is a ResNet-50 of 91 MiB. With the optimiser's state it has twice that size.
MAX_FILE = 256 * MIB
# Weights hardly compress: all files together may be MAX_FACTOR times as large as the archive, plus MAX_SLACK.
MAX_FACTOR, MAX_SLACK = 10, 64 * MIB
CHUNK = MIB
ARCHIVE_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, IndexError, NotImplementedError, OSError, OverflowError,
    RuntimeError, UnicodeDecodeError, lzma.LZMAError, struct.error, zlib.error,
)  # fmt: skip
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

Files = Iterator[tuple[str, Callable[[], bytes]]]


def archive_files(path: Path) -> Files:
    """Yields every file's path and a function that reads it. Nothing is unpacked to disk.

    Call the function before you take the next file.

    Raises:
        SetupError: there is no ``path``; it is not an archive, or damaged; a file is larger than ``MAX_FILE``, or all
            files together are larger than the archive allows. The functions raise it too.
    """
    with _errors_of(path):
        if path.is_dir():
            yield from _folder_files(path)
        elif not path.is_file():
            raise SetupError(f"{path} does not exist.")
        elif _start(path).startswith(b"PK"):
            yield from _zip_members(path)
        else:
            yield from _tar_members(path)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except ARCHIVE_ERRORS as error:
        raise SetupError(f"{path} is not a .tar or .zip archive, or is truncated: {one_line(error)}.") from error


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _folder_files(path: Path) -> Files:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            name = file.relative_to(path).as_posix()
            yield name, _reader(path, name, file.stat().st_size, partial(file.open, "rb"))


def _tar_members(path: Path) -> Files:
    opener = next((method for magic, method in COMPRESSED.items() if _start(path).startswith(magic)), open)
    total = 0
    with _Bounded(opener(path, "rb")) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            total += tarfile.BLOCKSIZE + member.size
            _check_total(path, total)
            if member.isfile():
                yield member.name, _reader(path, member.name, member.size, partial(archive.extractfile, member))


def _zip_members(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        _check_total(path, sum(member.file_size for member in members))
        for member in members:
            name = member.filename
            if member.compress_type not in ZIP_METHODS:
                raise SetupError(f"{path}: {name!r:.200} has an unknown compression; unpack it and give the folder.")
            yield name, _reader(path, name, member.file_size, partial(archive.open, member))


def _check_total(path: Path, total: int) -> None:
    most = MAX_FACTOR * path.stat().st_size + MAX_SLACK
    if total > most:
        raise SetupError(
            f"{path} would unpack to {total / MIB:.0f} MiB or more, over {MAX_FACTOR} times its size; weights do not "
            "compress like that. Fetch it again, or unpack it and give the folder."
        )


def _reader(path: Path, name: str, size: int, opener: Callable[[], Any]) -> Callable[[], bytes]:
    def read() -> bytes:
        if size > MAX_FILE:
            most = MAX_FILE // MIB
            raise SetupError(f"{path}: {name!r:.200} has {size / MIB:.0f} MiB; a teacher has at most {most}.")
        content = bytearray()
        with _errors_of(path), opener() as file:
            while len(content) <= size and (part := file.read(CHUNK)):
                content += part
            if len(content) != size:
                raise EOFError(f"{name!r:.200} does not have the {size} bytes that it should have")
        return bytes(content)

    return read


class _Bounded(io.RawIOBase):
    """A stream that refuses large reads: tarfile would read a header of any declared length at once."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self.stream = stream

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= CHUNK:
            raise tarfile.ReadError(f"it has a header of {count} bytes")
        return self.stream.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def close(self) -> None:
        self.stream.close()
        super().close()
