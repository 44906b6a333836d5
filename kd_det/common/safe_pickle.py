"""A pickle reader that builds plain containers and NumPy arrays with its own constructors, and calls nothing else.

Python's own unpicklers call what a file names. Even ``numpy.ndarray`` and ``numpy.dtype`` crash the process on
malicious arguments, and the C unpickler allocates memory for the largest memo index in the file. Here every global name
is mapped to one of our functions, which checks its arguments. The memo is a dict, and a length that the file cannot
hold is refused.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np

# What is built from a file may take this many times the file's size, plus SLACK bytes.
FACTOR = 4
SLACK = 2**20
MAX_PARTS = 1_000_000  # instructions of a pickle, and parts of its content; the largest checkpoints have about 100,000
MAX_PARTS_SLACK = 100_000  # with a part counted each time that it is used
MAX_DEPTH = 64  # of nested containers
MAX_DIMENSIONS = 32
MAX_INT_BITS = 256  # the states of random number generators have 128
KINDS = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1|\?)")
SIMPLE_KEYS = (str, int, float, bool, bytes, type(None))
LATIN1 = ("latin1", "latin-1", "iso-8859-1")
# What Python's unpickler raises for a damaged file.
DAMAGED = (
    pickle.UnpicklingError, AssertionError, AttributeError, EOFError, IndexError, KeyError, OverflowError, TypeError,
    ValueError, struct.error,
)  # fmt: skip
OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT",
    "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "EMPTY_DICT", "GET", "BINGET",
    "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "BINPERSID",
)  # fmt: skip
OUR_OPCODES = ("REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "DICT", "BYTEARRAY8")


class UnreadableError(Exception):
    """A file does not have the expected content. The message gives the reason in one line, without the file's name."""


class BoundedFile:
    """Reads a file from its current position. A read past its end is refused before memory is allocated."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        if not 0 <= count <= self.size - self.file.tell():
            raise EOFError
        return self.file.read(count)

    def readline(self) -> bytes:
        """The next line with its line break."""
        return self.file.readline()


class Budget:
    """Bytes that may still be built from a file of ``size`` bytes: ``FACTOR * size + SLACK`` in all."""

    def __init__(self, size: int) -> None:
        self.left = FACTOR * size + SLACK

    def take(self, count: int) -> None:
        """Raises ``UnreadableError`` where the file would give more than that."""
        self.left -= count
        if self.left < 0:
            raise UnreadableError(f"it would take more than {FACTOR} times its size in memory")


class Name:
    """A global name in a pickle. It may be passed to a function, but it is not a value."""


@dataclass(frozen=True)
class Function(Name):
    """A global name that the pickle may call."""

    run: Callable[..., Any]


class _Opcodes(dict[int, Callable[..., None]]):
    """The functions that run the instructions; at most ``MAX_PARTS`` of them are looked up."""

    asked = 0

    def __getitem__(self, code: int) -> Callable[..., None]:
        self.asked += 1
        if self.asked > MAX_PARTS:
            raise UnreadableError(f"it has more than {MAX_PARTS:,} parts")
        return super().__getitem__(code)


class _DType:
    """A pickled ``numpy.dtype``: created by a call, then given its byte order."""

    def __init__(self, kind: Any, *flags: Any) -> None:
        if not isinstance(kind, str) or not KINDS.fullmatch(kind):
            shown = kind if isinstance(kind, str) else type(kind).__name__  # the text of a nested value can be endless
            raise UnreadableError(f"it has an array of the dtype {shown!a:.40}; only float, int and bool are read")
        self.value = np.dtype(kind)

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise UnreadableError("it has an array with a damaged dtype")
        if any(part is not None for part in state[2:5]):  # sub-arrays and fields, which can hide objects
            raise UnreadableError("it has an array with fields; only float, int and bool are read")
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """A pickled array: created empty by a call, then given its shape, dtype and content."""

    value: np.ndarray | None = None


class SafeUnpickler(pickle._Unpickler):
    """Reads one pickle: plain containers, text, numbers, NumPy arrays and scalars.

    Attributes:
        names: (module, name) to a ``Name`` or a value. Subclasses extend it.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in OPCODES
    }

    # Attributes of pickle._Unpickler, which typeshed declares only in part.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: BoundedFile, budget: Budget) -> None:
        super().__init__(file, encoding="latin1")  # Caffe2's files are Python 2's
        self.file = file
        self.budget = budget
        vars(self)["dispatch"] = _Opcodes(type(self).dispatch)
        self._parts, self._text = min(MAX_PARTS, FACTOR * file.size + MAX_PARTS_SLACK), Budget(file.size)
        self.names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): Function(_ordered_dict),
            ("collections", "Counter"): Function(_counter),
            ("_codecs", "encode"): Function(self._encode),
            ("numpy", "ndarray"): Name(),
            ("numpy", "dtype"): Function(_DType),
        }
        for module in ("builtins", "__builtin__"):  # Python 3 and 2
            self.names[module, "bytes"] = self.names[module, "bytearray"] = Function(self._bytes)
        for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
            self.names[f"{core}.multiarray", "_reconstruct"] = Function(lambda *arguments: _Array())
            self.names[f"{core}.multiarray", "scalar"] = Function(self._scalar)
            self.names[f"{core}.numeric", "_frombuffer"] = Function(self._from_buffer)

    def read_one(self) -> Any:
        """The object that the pickle holds.

        Raises:
            UnreadableError: it is damaged, has a name that is not in ``names``, or would take too much memory.
        """
        try:
            return self._plain(self.load())
        except EOFError as error:
            raise UnreadableError(f"it ends too early, after {self.file.size} bytes") from error
        except DAMAGED as error:
            raise UnreadableError(f"the content near byte {self.file.file.tell()} is damaged") from error

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            asked = f"{module}.{name}"
            raise UnreadableError(f"it asks for {asked!a:.100}, which is neither an array nor a plain container")
        return self.names[module, name]

    def _plain(self, value: Any, depth: int = 0) -> Any:
        """``value`` with finished arrays. A part that is used several times counts each time, as printing it would."""
        self._parts -= 1
        if self._parts < 0 or depth > MAX_DEPTH:
            raise UnreadableError("its containers are nested too deeply, or contain themselves")
        if isinstance(value, (str, bytes)):
            self._text.take(len(value))
        if isinstance(value, _Array):
            if value.value is None:
                raise UnreadableError("it has an array without content")
            return value.value
        if isinstance(value, _DType):
            return value.value
        if isinstance(value, dict):
            content = ((self._plain(key), self._plain(item, depth + 1)) for key, item in value.items())
            if not isinstance(value, OrderedDict):
                return dict(content)
            ordered = OrderedDict(content)
            if "_metadata" in vars(value):  # the versions of a state dict's modules
                vars(ordered)["_metadata"] = self._plain(_versions(vars(value)["_metadata"]), depth + 1)
            return ordered
        if type(value) in (list, tuple):
            return type(value)(self._plain(item, depth + 1) for item in value)
        if isinstance(value, Name):
            raise UnreadableError("it holds a function or class where a value should be")
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise UnreadableError(f"it holds an integer of {value.bit_length()} bits")
        return value

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in LATIN1:  # how bytes are pickled for Python 2
            raise UnreadableError("it has bytes in an unknown encoding")
        self.budget.take(len(text))
        return text.encode("latin1")

    def _bytes(self, content: Any = b"", *encoding: Any) -> bytes:
        if type(content) is bytes and not encoding:
            return content
        return self._encode(content, *encoding)

    def _scalar(self, dtype: Any, raw: Any = b"") -> Any:
        return self._array((), dtype, False, raw)[()]

    def _from_buffer(self, raw: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
        if order not in ("C", "F"):
            raise UnreadableError("it has an array in an unknown order of dimensions")
        array = _Array()
        array.value = self._array(shape, dtype, order == "F", raw)
        return array

    def _array(self, shape: Any, dtype: Any, fortran: Any, raw: Any) -> np.ndarray:
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, _DType):
            raise UnreadableError("it has an array that does not hold numbers")
        check_shape(shape)
        kind = dtype.value
        if math.prod(shape) * kind.itemsize != len(content):
            raise UnreadableError(f"it has an array of shape {tuple(shape)} with {len(content)} bytes of content")
        self.budget.take(len(content))
        if kind.kind == "b":  # a bool must be a byte of 0 or 1
            flat = np.frombuffer(content, np.uint8) != 0 if content else np.empty(0, bool)
        else:
            flat = np.frombuffer(content, kind).astype(kind.newbyteorder("=")) if content else np.empty(0, kind)
        return flat.reshape(shape, order="F" if fortran else "C")

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise UnreadableError("it calls something that is not a function")
        self.stack[-1] = function.run(*arguments)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _DType):
            target.build(state)
        elif isinstance(target, _Array):
            if type(state) is not tuple or len(state) not in (4, 5):  # the first format had no version
                raise UnreadableError("it has a damaged array")
            target.value = self._array(*state[-4:])
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            vars(target).update(state)
        else:
            raise UnreadableError("it sets attributes of something that cannot have any")

    def load_append(self) -> None:
        item = self.stack.pop()
        _require(self.stack[-1], list).append(item)

    def load_appends(self) -> None:
        items = self.pop_mark()
        _require(self.stack[-1], list).extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(_require(self.stack[-1], dict), [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _fill(_require(self.stack[-1], dict), items)

    def load_dict(self) -> None:
        items = self.pop_mark()  # this replaces self.append
        self.append(_fill({}, items))

    def load_bytearray8(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(count)))


for _name in OUR_OPCODES:
    SafeUnpickler.dispatch[getattr(pickle, _name)[0]] = getattr(SafeUnpickler, f"load_{_name.lower()}")


def check_counts(counts: Any) -> None:
    """Raises ``UnreadableError`` unless ``counts`` is a short tuple of integers, 0 or more and far from overflow."""
    if not isinstance(counts, tuple) or len(counts) > MAX_DIMENSIONS:
        raise UnreadableError("it has an array with a damaged shape")
    if not all(type(count) is int and 0 <= count < 2**48 for count in counts):
        raise UnreadableError("it has an array with a damaged shape")


def check_shape(shape: Any) -> None:
    """As ``check_counts``; the product of the nonzero sides must not overflow either."""
    check_counts(shape)
    if math.prod(side or 1 for side in shape) >= 2**48:
        raise UnreadableError("it has an array with a damaged shape")


def _require(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise UnreadableError(f"it adds items to something that is not a {kind.__name__}")
    return value


def _fill(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in SIMPLE_KEYS:  # hashing a nested tuple can take forever
            raise UnreadableError("it has a key that is neither text nor a number")
        target[key] = value
    return target


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    if type(pairs) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise UnreadableError("it has a damaged OrderedDict")
    content: OrderedDict[Any, Any] = OrderedDict()
    _fill(content, [part for pair in pairs for part in pair])
    return content


def _counter(counts: Any = None) -> dict[Any, Any]:
    return dict(_require({} if counts is None else counts, dict))


def _versions(metadata: Any) -> dict[str, dict[str, int]]:
    """The versions of the modules, which ``Module.state_dict`` stores and ``load_state_dict`` reads."""
    if not isinstance(metadata, dict) or not all(isinstance(entry, dict) for entry in metadata.values()):
        raise UnreadableError("it has a state dict with damaged metadata")
    versions = OrderedDict((name, entry) for name, entry in metadata.items() if isinstance(name, str))
    return OrderedDict(
        (name, {"version": entry["version"]} if type(entry.get("version")) is int else {})
        for name, entry in versions.items()
    )
