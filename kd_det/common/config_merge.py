"""Merging files and overrides into a configuration, with errors that help. Detectron2's and plain fvcore's alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import yaml
from fvcore.common.config import CfgNode

from kd_det.common.errors import SetupError, did_you_mean


def merge_config(cfg: CfgNode, config_file: str, overrides: Sequence[object], source: str) -> None:
    """Merges a file and overrides into ``cfg``; ``source`` is the option or key that named the file, for errors."""
    if config_file and not os.path.isfile(config_file):
        raise SetupError(f"{source}: no file {config_file!r}. Give the path of a YAML configuration.")
    if len(overrides) % 2:
        raise SetupError(f"overrides come as KEY VALUE pairs, got {list(overrides)}: one has no partner.")
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(overrides))
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
