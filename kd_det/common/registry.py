"""Classes under the names that a configuration gives them, and the import of a user's own code that adds to them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from kd_det.common.errors import SetupError, did_you_mean, one_line

T = TypeVar("T", bound=type)


class Registry(Mapping[str, T]):
    """Read it like a dict; add to it with the class decorator :meth:`register`.

    Args:
        kind: what the entries are, for errors: "KD term".
        key: the configuration key that names them: "KD.TERMS".
    """

    def __init__(self, kind: str, key: str) -> None:
        self.kind, self.key = kind, key
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that adds the class as ``name``.

        Raises:
            ValueError: the name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"there is already a {self.kind} {name!r}: {self._entries[name]}.")
            self._entries[name] = entry
            return entry

        return add

    def find(self, name: object) -> T:
        """The entry ``name``.

        Raises:
            SetupError: there is none; the nearest and all known names are listed.
        """
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        raise SetupError(
            f"{self.key}: there is no {self.kind} {name!r}.{did_you_mean(str(name), self)} "
            f"Known: {', '.join(sorted(self))}. Code of your own is loaded with --import FILE_OR_MODULE."
        )

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def import_code(name: str) -> None:
    """Imports a Python file or a module by name, once, so that the terms or distillers in it register themselves.

    Args:
        name: a path that ends in ".py", or a module that Python finds (the working directory included).

    Raises:
        SetupError: there is no such file or module, or importing it raised: the message has the file and the line.
    """
    path = Path(name)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise SetupError(f"--import: there is no file {name!r}. Give the path of a Python file, or a module's name.")
    if is_file:
        _import(name, lambda: _import_file(path))
        return
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    _import(name, lambda: importlib.import_module(name))


def _import_file(path: Path) -> None:
    # One file is one module however it is written, so that nothing registers twice.
    module_name = f"kd_det_imported_{zlib.crc32(os.fsencode(path.resolve())):08x}_{path.stem}"
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, path.resolve())
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickling and dataclasses look it up there
    sys.path.insert(0, str(path.resolve().parent))  # as for a script: it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))


def _import(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name is not None and name.split(".")[0] == error.name:
            raise SetupError(f"--import: there is no module {name!r}. Give a module's name, or a .py file.") from error
        raise SetupError(f"--import {name}: {_place(error)}: {type(error).__name__}: {one_line(error)}") from error


def _place(error: Exception) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    theirs = [frame for frame in frames if frame.filename != __file__]
    last = (theirs or frames)[-1]
    return f"{last.filename}, line {last.lineno}"
