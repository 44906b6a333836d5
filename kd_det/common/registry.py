"""Registries of classes by the names that configurations use, and the import of user code that registers more."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kd_det.common.errors import SetupError, did_you_mean, one_line
from kd_det.common.setting_checks import same_type

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

T = TypeVar("T", bound=type)

IMPORT = "--import"
PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
KEY = re.compile(r"[A-Z][A-Z0-9_]*")
VALUES = (bool, int, float, str, list, tuple)


class Registry(Mapping[str, T]):
    """Read it like a dict; add to it with the class decorator :meth:`register`.

    A class may bring configuration keys. Its attribute ``keys``, name to default, becomes a section called like the
    class, in upper case. Its attribute ``checks``, full key to check, checks the values.

    Args:
        kind: what the entries are, for errors: "KD term".
        key: the configuration key that names them: "KD.TERMS".
        parent: the section that has the entries' sections: "KD"; "" is the configuration itself.
    """

    def __init__(self, kind: str, key: str, parent: str = "") -> None:
        self.kind, self.key, self.parent = kind, key, parent
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that adds the class as ``name``.

        Raises:
            ValueError: the name is taken, or the class's ``keys`` or ``checks`` are not valid.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"there is already a {self.kind} {name!r}: {self._entries[name]}.")
            self._check_keys(name, entry)
            self._entries[name] = entry
            return entry

        return add

    def section(self, name: str) -> str:
        """The section of the entry ``name``: "KD.P3"."""
        return f"{self.parent}.{name.upper()}" if self.parent else name.upper()

    def _check_keys(self, name: str, entry: T) -> None:
        keys, checks, section = getattr(entry, "keys", {}), getattr(entry, "checks", {}), self.section(name)
        if keys and not KEY.fullmatch(name.upper()):
            raise ValueError(f"the {self.kind} {name!r} has keys, so its name must be letters, digits and underscores.")
        for key, default in keys.items():
            if not isinstance(key, str) or not KEY.fullmatch(key):
                raise ValueError(f"{section}: the key {key!r} must be capital letters, digits and underscores.")
            if not isinstance(default, VALUES):
                allowed = ", ".join(kind.__name__ for kind in VALUES)
                raise ValueError(f"{section}.{key}: the default {default!r:.100} must be one of {allowed}.")
        for key in checks:
            if keys and key.startswith(f"{section}.") and key.removeprefix(f"{section}.") not in keys:
                raise ValueError(f"{section}: checks has {key!r}, which is not in keys.{did_you_mean(key, keys)}")

    def add_sections(self, cfg: CfgNode) -> None:
        """Adds the sections of all entries that bring keys to ``cfg``, in place.

        Raises:
            SetupError: a section has the name of another key.
        """
        node = cfg[self.parent] if self.parent else cfg
        for name, entry in self._entries.items():
            keys = getattr(entry, "keys", {})
            if keys and name.upper() in node:
                raise SetupError(
                    f"the {self.kind} {name!r} has keys, but the key {self.section(name)} exists already. Register it "
                    "under another name."
                )
            if keys:
                node[name.upper()] = type(cfg)(dict(keys))

    def check_sections(self, cfg: CfgNode) -> None:
        """Checks the keys that entries bring: types, finite values, and the entries' own checks.

        Raises:
            SetupError: for the first value that is not valid.
        """
        for name, entry in self._entries.items():
            keys, checks, section = getattr(entry, "keys", {}), getattr(entry, "checks", {}), self.section(name)
            for key, default in keys.items():
                value = (cfg[self.parent] if self.parent else cfg)[name.upper()][key]
                same_type(f"{section}.{key}", value, default)
                if isinstance(value, float) and not math.isfinite(value):
                    raise SetupError(f"{section}.{key} is {value!r}; it must be a finite number.")
                if f"{section}.{key}" in checks:
                    checks[f"{section}.{key}"](f"{section}.{key}", value)

    def find(self, name: object) -> T:
        """The entry ``name``.

        Raises:
            SetupError: there is no such entry; the message lists the nearest and all known names.
        """
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        raise SetupError(
            f"{self.key}: there is no {self.kind} {name!r}.{did_you_mean(str(name), self)} "
            f"Known: {', '.join(sorted(self))}. Import your own code with {IMPORT} FILE_OR_MODULE."
        )

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


_imported: list[str] = []  # by import_code, in order


def import_code(name: str) -> None:
    """Imports a Python file or a module by name, once, so that the terms or distillers in it register themselves.

    Args:
        name: a path that ends in ".py", or a module that Python finds (the working directory included).

    Raises:
        SetupError: there is no such file or module, or importing it raised an error; the message has its file and line.
    """
    path = Path(name)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise SetupError(f"{IMPORT}: there is no file {name!r}. Give the path of a Python file, or a module's name.")
    if is_file:
        name = str(path.resolve())
        _import(name, lambda: _import_file(path))
    else:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        _import(name, lambda: importlib.import_module(name))
    if name not in _imported:
        _imported.append(name)


def imported_code() -> tuple[str, ...]:
    """What ``import_code`` has imported in this process. Processes that it starts must import it too."""
    return tuple(_imported)


def import_options() -> list[str]:
    """``imported_code`` as options of a command line: ``--import NAME ...``."""
    return [part for name in _imported for part in (IMPORT, name)]


def _import_file(path: Path) -> None:
    # Two paths of one file are the same module, so that nothing registers twice.
    module_name = f"kd_det_imported_{zlib.crc32(os.fsencode(path.resolve())):08x}_{path.stem}"
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, path.resolve())
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickle and dataclasses look it up there
    sys.path.insert(0, str(path.resolve().parent))  # as for a script: it may import modules of its folder
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
            raise SetupError(f"{IMPORT}: there is no module {name!r}. Give a module's name, or a .py file.") from error
        place = _place(error)
        place = place if place.startswith(name) else f"{name}: {place}"
        raise SetupError(f"{IMPORT} {place}: {type(error).__name__}: {one_line(error)}") from error


def _place(error: Exception) -> str:
    """The place of the error: the last line of the user's code, not one of a library that it called."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    outside = [frame for frame in frames if not frame.filename.startswith(PACKAGE)]
    own = [frame for frame in outside if "site-packages" not in frame.filename]
    last = (own or outside or frames)[-1]
    return f"{last.filename}, line {last.lineno}"
