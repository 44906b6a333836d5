"""Merging files and overrides into a configuration, with errors that help. Detectron2's and plain fvcore's alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from kd_det.common.config_files import find_configs, log_differences
from kd_det.common.errors import SetupError, did_you_mean


def merge_config(cfg: CfgNode, config_file: str | Sequence[str], overrides: Sequence[object], source: str) -> None:
    """Merges files and overrides into ``cfg``.

    Args:
        config_file: paths or shipped names, merged in order, the later wins; a string is one file, or none if empty.
        overrides: KEY VALUE ..., after the files.
        source: the option or key that named the files, for errors.

    Raises:
        SetupError: a file does not exist or is not YAML, a key does not exist (the nearest is suggested), or a value
            is of the wrong type.
    """
    files = find_configs(config_file, source)
    if len(overrides) % 2:
        raise SetupError(f"overrides come as KEY VALUE pairs, got {list(overrides)}: one has no partner.")
    log_differences({name: merge_file(cfg, path) for name, path in files.items()})
    with _explained(cfg, ""):
        cfg.merge_from_list(list(overrides))


def merge_file(cfg: CfgNode, path: str) -> dict[str, Any]:
    """Merges one file into ``cfg``; returns its content, ``_BASE_`` included.

    Raises:
        SetupError: it is not YAML, or does not fit ``cfg``.
    """
    with _explained(cfg, path):
        content: dict[str, Any] = type(cfg).load_yaml_with_base(path)
        if content.get("VERSION") == cfg.get("VERSION"):
            cfg.merge_from_other_cfg(type(cfg)(content))
        else:
            cfg.merge_from_file(path)  # Detectron2 guesses a version, and converts old ones
    return content


@contextmanager
def _explained(cfg: CfgNode, config_file: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise SetupError(_explain(error, cfg, config_file)) from error


def _explain(error: Exception, cfg: CfgNode, config_file: str) -> str:
    text = str(error.args[0]) if error.args else str(error)
    prefix = f"configuration {config_file or '(overrides)'}: "
    if "Non-existent" in text:
        key = text.rsplit(":", 1)[-1].strip()
        return f"{prefix}there is no key {key!r}.{did_you_mean(key, _keys(cfg))}"
    if "Type mismatch" in text:
        return f"{prefix}{text}. Write the value in the key's own type (a float as 8.0, a list as ['a'])."
    return prefix + text


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
