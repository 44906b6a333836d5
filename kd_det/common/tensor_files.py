"""Reads all files of tensors: those of ``torch.save``, now and before PyTorch 1.6, and pickles of arrays.

``torch.load(weights_only=True)`` runs no code either, but it trusts a damaged file: it calls ``bytearray`` with any
length, allocates memory for storages that are not in the file, and raises many kinds of errors. This reader takes at
most ``FACTOR`` times the file's size and raises one kind of error.
"""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from kd_det.common.errors import SetupError
from kd_det.common.safe_pickle import (
    BoundedFile,
    Budget,
    Function,
    Name,
    SafeUnpickler,
    UnreadableError,
    check_counts,
    check_shape,
)

__all__ = ["UnreadableError", "check_weights", "read_tensor_file"]

# The numbers that files of torch.save from before version 1.6 begin with.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ZIP = b"PK\x03\x04"
PICKLE_MEMBER = re.compile(r"([^/]+/)?data\.pkl")
CHUNK = 2**20
ZIP_ERRORS = (
    zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError,
    struct.error, zlib.error,
)  # fmt: skip
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
# From a storage's key, dtype and length in elements to its content, one-dimensional.
Storages = Callable[[Any, torch.dtype, int], Tensor]


def read_tensor_file(file: str | os.PathLike[str] | BinaryIO) -> Any:
    """The content of a file of ``torch.save`` (any version) or of a pickle of NumPy arrays. No code of the file is run.

    Args:
        file: a path, or a file opened for reading bytes.

    Returns:
        Containers, numbers, text, and tensors on the CPU or arrays. Parameters become plain tensors.

    Raises:
        UnreadableError: the file cannot be read, is damaged, or has other content.
    """
    try:
        if isinstance(file, (str, os.PathLike)):
            with open(file, "rb") as stream:
                return _read(stream)
        return _read(file)
    except OSError as error:
        raise UnreadableError(error.strerror or "it cannot be read") from error
    except MemoryError as error:
        raise UnreadableError("there is not enough memory for it") from error


def check_weights(weights: Any, source: str) -> dict[str, Tensor]:
    """``weights`` as tensors by name, if all values are finite.

    Args:
        weights: a dict of tensors or arrays. Arrays are replaced by tensors in it.
        source: the option or key that named the file, and the file, for the message.

    Raises:
        SetupError: it is not such a dict, or an entry has a nan or infinite value.
    """
    if not isinstance(weights, dict):
        raise SetupError(f"{source}: the weights are a {type(weights).__name__}, not a dict; give another file.")
    for name, value in weights.items():
        if not isinstance(name, str) or not name.isprintable():
            raise SetupError(f"{source}: {name!r:.100} is not a valid name of an entry; give another file.")
        if isinstance(value, (np.ndarray, np.generic)):
            value = torch.as_tensor(np.asarray(value))
        elif not isinstance(value, Tensor):
            kind = type(value).__name__
            raise SetupError(f"{source}: entry {name!r:.200} is a {kind}, not a tensor; give a file of weights.")
        if value.is_floating_point() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise SetupError(
                f"{source}: {count} of {value.numel()} values of the entry {name!r:.200} are non-finite (nan or "
                "infinity). The file is damaged, or its run diverged; give another."
            )
        weights[name] = value
    return weights


def _read(stream: BinaryIO) -> Any:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(len(ZIP))
    stream.seek(0)
    if start == ZIP:
        return _read_zip(stream, size)
    file, budget = BoundedFile(stream, size), Budget(size)
    storages = _StoragesBehind(budget)
    content = _TensorUnpickler(file, budget, storages.new).read_one()
    if not _is_number(content, MAGIC):
        if storages.made:
            raise UnreadableError("it lacks the content of its tensors")
        return content
    return _read_legacy(file, budget)


class _TensorUnpickler(SafeUnpickler):
    """Builds tensors too, as views of storages whose length is checked."""

    def __init__(self, file: BoundedFile, budget: Budget, storages: Storages) -> None:
        super().__init__(file, budget)
        self._storages = storages
        self.names.update({("torch", name): dtype for name, dtype in DTYPES.items()})
        self.names.update({("torch", name): _StorageKind(dtype) for name, dtype in STORAGES.items()})
        self.names["torch", "Size"] = Function(_size)
        self.names["torch", "device"] = Function(_device)
        self.names["torch", "Tensor"] = self.names["torch.nn.parameter", "Parameter"] = Name()
        self.names["torch._tensor", "_rebuild_from_type_v2"] = Function(_of_type)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            self.names["torch._utils", name] = Function(_tensor)
        for name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            self.names["torch._utils", name] = Function(_parameter)

    def persistent_load(self, pid: Any) -> Tensor:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise UnreadableError("it refers to something that is not a storage of a tensor")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageKind) or type(count) is not int or not 0 <= count < 2**48:
            raise UnreadableError("it has a tensor whose storage is damaged")
        storage = self._storages(key, kind.dtype, count)
        if view in ([], [None]):
            return storage
        _, offset, length = view[0]  # PyTorch before 0.4 saved a part of a storage so
        if not all(type(number) is int and number >= 0 for number in (offset, length)) or offset + length > count:
            raise UnreadableError("it has a tensor whose storage is damaged")
        return storage[offset : offset + length]


class _StorageKind(Name):
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A view of ``storage``; ``rest`` (gradients, hooks) matters for training alone."""
    if not isinstance(storage, Tensor) or storage.dim() != 1:
        raise UnreadableError("it has a tensor without a storage")
    check_shape(size)
    check_counts(stride)
    check_counts((offset,))
    count, end = 1, offset + 1
    for side, step in zip(size, stride, strict=True):
        count *= side
        end += (side - 1) * step
    if count and (end > len(storage) or count > len(storage)):
        raise UnreadableError(f"it has a tensor of shape {tuple(size)} over a storage of {len(storage)} elements")
    if not count:
        return storage.new_empty(size)
    return storage.as_strided(size, stride, offset)


def _parameter(tensor: Any, *rest: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise UnreadableError("it has a parameter that is not a tensor")
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Tensor:
    """The values of a tensor of a subclass."""
    if not isinstance(function, Function) or function.run not in (_tensor, _parameter) or type(arguments) is not tuple:
        raise UnreadableError("it has a damaged tensor")
    tensor: Tensor = function.run(*arguments)
    return tensor


def _size(sides: Any = ()) -> torch.Size:
    check_shape(tuple(sides))
    return torch.Size(sides)


def _device(kind: Any, index: Any = None) -> torch.device:
    if not isinstance(kind, str) or not isinstance(index, (int, type(None))):
        raise UnreadableError("it names a device that does not exist")
    try:
        return torch.device(kind if index is None else f"{kind}:{index:d}")
    except RuntimeError as error:
        raise UnreadableError("it names a device that does not exist") from error


def _read_zip(stream: BinaryIO, size: int) -> Any:
    """The format since PyTorch 1.6: a zip archive of a pickle and, not compressed, the storages."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise UnreadableError("it has two members of the same name")
            pickles = [name for name in members if PICKLE_MEMBER.fullmatch(name)]
            if len(pickles) != 1:
                raise UnreadableError("it is a zip archive that torch.save did not write")
            prefix = pickles[0].removesuffix("data.pkl")
            if f"{prefix}constants.pkl" in members:
                raise UnreadableError("it is a TorchScript program, not a checkpoint")
            budget = Budget(size)
            order = members.get(f"{prefix}byteorder")
            if order is not None and _member(archive, order, budget).numpy().tobytes() != sys.byteorder.encode():
                raise UnreadableError("it was written on a machine with another byte order")
            made: dict[tuple[str, torch.dtype], Tensor] = {}

            def storage(key: Any, dtype: torch.dtype, count: int) -> Tensor:
                name = f"{prefix}data/{_named(key)}"
                if (name, dtype) not in made:
                    if name not in members:
                        raise UnreadableError(f"it lacks the content of the storage {key!a:.40}")
                    made[name, dtype] = _typed(_member(archive, members[name], budget), dtype, count)
                return _as_long_as(made[name, dtype], count)

            data = _member(archive, members[pickles[0]], budget).numpy().tobytes()
            return _TensorUnpickler(BoundedFile(io.BytesIO(data), len(data)), budget, storage).read_one()
    except ZIP_ERRORS as error:
        reason = str(error) if isinstance(error, zipfile.BadZipFile) else "its zip archive is damaged"
        raise UnreadableError(f"{reason:.100}") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget) -> Tensor:
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise UnreadableError("it is a zip archive with compressed members, which torch.save does not write")
    budget.take(member.file_size)
    content = torch.empty(member.file_size, dtype=torch.uint8)
    view, filled = memoryview(content.numpy().data), 0
    with archive.open(member) as file:
        while filled < len(view):
            part = file.read(CHUNK)
            if not part:
                raise UnreadableError("it ends within a member of its zip archive")
            view[filled : filled + len(part)] = part
            filled += len(part)
    return content


def _typed(content: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    if len(content) != count * dtype.itemsize:
        raise UnreadableError(f"it has {len(content)} bytes for a storage of {count} elements of {dtype}")
    return content.ne(0) if dtype == torch.bool else content.view(dtype)


def _as_long_as(storage: Tensor, count: int) -> Tensor:
    if len(storage) != count:
        raise UnreadableError("it gives two lengths for one storage")
    return storage


class _StoragesBehind:
    """Storages whose content follows after the pickle."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.made: dict[str, Tensor] = {}

    def new(self, key: Any, dtype: torch.dtype, count: int) -> Tensor:
        if _named(key) not in self.made:
            self.budget.take(count * dtype.itemsize)
            self.made[key] = torch.zeros(count, dtype=dtype)
        if self.made[key].dtype != dtype:
            raise UnreadableError("it gives two dtypes for one storage")
        return _as_long_as(self.made[key], count)


def _named(key: Any) -> str:
    if not isinstance(key, str):
        raise UnreadableError("it has a storage without a name")
    return key


def _read_legacy(file: BoundedFile, budget: Budget) -> Any:
    """The format before PyTorch 1.6: five pickles, then length and content of each storage."""
    storages = _StoragesBehind(budget)

    def read_one() -> Any:
        return _TensorUnpickler(file, budget, storages.new).read_one()

    if not _is_number(read_one(), PROTOCOL):
        raise UnreadableError("it was written by an unknown version of torch.save")
    system = read_one()
    if not isinstance(system, dict) or system.get("little_endian", True) is not (sys.byteorder == "little"):
        raise UnreadableError("it was written on a machine with another byte order")
    content, keys = read_one(), read_one()
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages.made):
        raise UnreadableError("its list of storages does not match its tensors")
    for key in keys:
        _fill(storages.made[key], file)
    return content


def _is_number(value: Any, number: int) -> bool:
    return type(value) is int and value == number


def _fill(storage: Tensor, file: BoundedFile) -> None:
    try:
        (count,) = struct.unpack("=q", file.read(8))
        if count != len(storage):
            raise UnreadableError(f"it has {count} elements for a storage of {len(storage)}")
        content = storage.view(torch.uint8).numpy()
        content.data[:] = file.read(content.size)
    except EOFError as error:
        raise UnreadableError(f"it ends too early, after {file.size} bytes") from error
    if storage.dtype == torch.bool:
        storage.view(torch.uint8).ne_(0)
