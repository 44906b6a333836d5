"""Merges files and overrides into a configuration, Detectron2's or plain fvcore's, with helpful errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from kd_det.common.config_files import find_configs, log_differences
from kd_det.common.errors import SetupError, did_you_mean, one_line
from kd_det.common.yaml_files import read_config_file, split_section

MAX_OVERRIDE = 100_000  # characters
# What yacs and Detectron2's conversion of old versions raise for content that does not fit. Python's parser of values
# exhausts the stack or the memory on a deeply nested value.
MERGE_ERRORS = (AssertionError, AttributeError, KeyError, MemoryError, RecursionError, TypeError, ValueError)


def merge_config(cfg: CfgNode, config_file: str | Sequence[str], overrides: Sequence[object], source: str) -> None:
    """Merges files and overrides into ``cfg``.

    Args:
        config_file: paths or shipped names, merged in order, the later wins; a string is one file, or none if empty.
        overrides: KEY VALUE ..., after the files.
        source: the option or key that named the files, for errors.

    Raises:
        SetupError: see ``find_configs`` and ``read_config_file``; or a key does not exist, or a value has the wrong
            type.
    """
    overrides = list(overrides)
    _check_overrides(overrides)
    files = find_configs(config_file, source)
    log_differences({name: merge_file(cfg, path, source) for name, path in files.items()})
    with _explained(cfg, ""):
        _check_keys(cfg, overrides[::2])
        cfg.merge_from_list(overrides)


def merge_file(cfg: CfgNode, path: str, source: str = "--config-file") -> dict[str, Any]:
    """Merges one file, or a section of one, into ``cfg``; returns its content, ``_BASE_`` included.

    Raises:
        SetupError: see ``read_config_file``; or it does not fit ``cfg``.
    """
    content = read_config_file(path, source, type(cfg))
    with _explained(cfg, path):
        _merge_content(cfg, content, path)
    return content


@contextmanager
def _explained(cfg: CfgNode, config_file: str) -> Iterator[None]:
    try:
        yield
    except SetupError:
        raise
    except (*MERGE_ERRORS, yaml.YAMLError) as error:
        raise SetupError(_explain(error, cfg, config_file)) from error


def _merge_content(cfg: CfgNode, content: dict[str, Any], config_file: str) -> None:
    _check_sections(cfg, content, config_file)
    latest, version = cfg.get("VERSION"), content.get("VERSION")
    if latest is not None and split_section(config_file)[1]:
        raise SetupError(f"configuration {config_file!r}: only classification reads sections of files. Leave it out.")
    if version == latest:
        cfg.merge_from_other_cfg(type(cfg)(content))
        return
    if latest is not None and version is not None and version not in range(1, latest):
        raise SetupError(
            f"configuration {config_file!r}: VERSION is {version!r:.100}; Detectron2 reads 1 to {latest}. Correct it."
        )
    cfg.merge_from_file(config_file, allow_unsafe=False)  # Detectron2 guesses the version, and converts old ones


def _check_overrides(overrides: list[object]) -> None:
    if len(overrides) % 2:
        raise SetupError(f"overrides come as KEY VALUE pairs, got {overrides!r:.300}: one key has no value.")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if not isinstance(key, str):
            raise SetupError(f"overrides come as KEY VALUE pairs, got {key!r:.100} as a key; keys are text.")
        if isinstance(value, str) and len(value) > MAX_OVERRIDE:
            raise SetupError(
                f"the override of {key!r:.200} has {len(value)} characters; {MAX_OVERRIDE} are allowed. "
                "Write it in a configuration file."
            )


def _check_sections(cfg: CfgNode, content: dict[str, Any], config_file: str, above: str = "") -> None:
    for key, value in content.items():
        if isinstance(cfg.get(key), CfgNode):
            if not isinstance(value, dict):
                raise SetupError(
                    f"configuration {config_file!r}: {above}{key} is {value!r:.100}, but it is a section. "
                    "Write its keys below it, indented."
                )
            _check_sections(cfg[key], value, config_file, f"{above}{key}.")


def _check_keys(cfg: CfgNode, keys: list[Any]) -> None:
    for key in keys:
        node: Any = cfg
        for part in key.split("."):
            if not isinstance(node, CfgNode):
                raise KeyError(f"Non-existent key: {key}")
            node = node.get(part)
        if isinstance(node, CfgNode):
            raise SetupError(f"configuration (overrides): {key} is a section. Give a key of it: {_some(node, key)}.")


def _some(node: CfgNode, above: str) -> str:
    names = [f"{above}.{name}" for name in list(node)[:3]]
    return ", ".join(names) + (", ..." if len(node) > 3 else "")


def _explain(error: Exception, cfg: CfgNode, config_file: str) -> str:
    text = one_line(error.args[0] if isinstance(error, KeyError) else error)
    prefix = f"configuration {config_file or '(overrides)'}: "
    if isinstance(error, (MemoryError, RecursionError)):
        return f"{prefix}a value is nested too deeply. Write it as a plain number, text or list."
    if "Non-existent" in text:
        key = text.rsplit(":", 1)[-1].strip()
        near = did_you_mean(key, _keys(cfg))
        return f"{prefix}there is no key {key!r}.{near}{_import_hint(cfg, key, near)}"
    if "Type mismatch" in text:
        return f"{prefix}{text}. Write the value in the key's own type (a float as 8.0, a list as ['a'])."
    return f"{prefix}{text.rstrip('.!')}."


def _import_hint(cfg: CfgNode, key: str, near: str) -> str:
    """A hint for a key whose section does not exist: it may belong to a term or distiller that is not imported."""
    detection = "TERMS" in (cfg.get("KD") or ())
    parts = key.split(".")
    if detection and parts[0] != "KD":
        return ""
    sections, parts = (cfg.KD, parts[1:]) if detection else (cfg, parts)
    is_section = len(parts) == 2 or (len(parts) == 1 and (detection or not near))
    if not is_section or parts[0] in sections:
        return ""
    return " The keys of your own term or distiller exist once its code is imported with --import."


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
