"""Finds configuration files by path or shipped name, from any folder, and logs where several of them disagree."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_det.common.errors import SetupError
from kd_det.common.yaml_files import refuse_python, split_section

logger = logging.getLogger(__name__)

# Where the shipped configurations are: in the package if it was installed from a wheel, otherwise next to it.
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
NEAREST = 3


def find_config(name: str | os.PathLike[str], source: str = "--config-file") -> str:
    """The path of a configuration.

    Args:
        name: a path, or the name of a shipped configuration: its path below ``CONFIGS``, "coco/dkd_r101_r18.yaml". A
            section of a file follows it after a colon, here and in the result: "cifar100/methods.yaml:crd".
        source: the option or key that gave the name, for the error.

    Raises:
        SetupError: it is neither (the nearest names are listed), or it is a Python configuration.
    """
    refuse_python(os.fspath(name), source)
    file, section = split_section(os.fspath(name))
    for path in (Path(file), CONFIGS / file):
        if path.is_file():
            return f"{path}:{section}" if section else str(path)
    near = difflib.get_close_matches(os.fspath(name).removeprefix("configs/"), shipped_configs(), NEAREST)
    nearest = f" The nearest are {', '.join(near)}." if near else ""
    raise SetupError(
        f"{source}: no file {os.fspath(name)!r}, and no configuration of that name is shipped.{nearest} Give the path "
        "of a YAML configuration, or a name such as 'coco/dkd_r101_r18.yaml'."
    )


def find_configs(names: str | Sequence[str], source: str = "--config-file") -> dict[str, str]:
    """The paths of several configurations, by name, in order. A string is one name; an empty string is none.

    Raises:
        SetupError: see :func:`find_config`; or one is listed twice.
    """
    names = [names] * bool(names) if isinstance(names, str) else list(names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SetupError(f"{source}: {twice!r} is listed twice; leave one out.")
    return {name: find_config(name, source) for name in names}


def shipped_configs() -> list[str]:
    """The names of all shipped configurations, sorted."""
    return sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def shipped_name(name: str) -> str:
    """The name of a shipped configuration for its path or name; any other path unchanged.

    Raises:
        SetupError: see :func:`find_config`.
    """
    path = Path(find_config(name)).resolve()
    return path.relative_to(CONFIGS).as_posix() if path.is_relative_to(CONFIGS) else name


def log_differences(contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Logs which file's value is used for each key that several files set differently: one line per two files.

    Args:
        contents: file name to content, ``_BASE_`` included, in the order of merging.
    """
    last: dict[str, tuple[str, Any]] = {}  # key: the file that set it, and the value
    for name, content in contents.items():
        replaced: dict[str, list[str]] = {}
        for key, value in leaves(content):
            earlier, other = last.get(key, (name, value))
            if other != value:
                replaced.setdefault(earlier, []).append(f"{key} {value!r} instead of {other!r}")
            last[key] = name, value
        for earlier, keys in replaced.items():
            # A warning, because files are read before a run has set up its log, and only warnings are shown then.
            logger.warning("%s overrides %s: %s", name, earlier, ", ".join(keys))


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a configuration's content, with dots, and its value."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
