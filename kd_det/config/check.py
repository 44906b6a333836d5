"""Applies the checks of single keys to a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg

from kd_det.common.errors import SetupError
from kd_det.common.setting_checks import Check, same_type
from kd_det.config import add_kd_config
from kd_det.config.model_keys import MODEL
from kd_det.config.other_keys import INPUT_FORMAT, OTHER


def check_settings(cfg: CfgNode) -> None:
    """Checks every key of ``cfg``: that it exists, that its value has the type of its default, and the value itself.

    Raises:
        SetupError: for the first value that is not valid.
    """
    _check_leaves(dict(leaves(cfg)), {**MODEL, **OTHER})


def check_model_settings(cfg: CfgNode) -> None:
    """As ``check_settings``, but only for the keys that a teacher is built from: MODEL and INPUT.FORMAT."""
    used = {key: value for key, value in leaves(cfg) if key.startswith("MODEL.") or key in INPUT_FORMAT}
    _check_leaves(used, {**MODEL, **INPUT_FORMAT}, sections=("MODEL.", "INPUT.FORMAT"))


def _check_leaves(values: Mapping[str, Any], table: Mapping[str, Check], sections: tuple[str, ...] = ("",)) -> None:
    defaults = get_cfg()
    add_kd_config(defaults)
    for key, default in leaves(defaults):
        if not key.startswith(sections):
            continue
        if key not in values:
            raise SetupError(f"{key} is missing: a whole section was replaced. Set the keys of the section one by one.")
        same_type(key, values[key], default)
    for key, value in values.items():
        if isinstance(value, str) and "\0" in value:
            raise SetupError(f"{key} is {value!r:.200}, which has a null character; remove it.")
        if key not in table and isinstance(value, float) and not abs(value) < float("inf"):
            raise SetupError(f"{key} is {value!r:.200}; it must be a finite number.")
    _apply(table, values)


def check_keys(cfg: CfgNode, table: Mapping[str, Check]) -> None:
    """Applies the checks of ``table`` (key to check) to those of its keys that ``cfg`` has.

    Raises:
        SetupError: a value does not pass its check.
    """
    _apply(table, dict(leaves(cfg)))


def _apply(table: Mapping[str, Check], values: Mapping[str, Any]) -> None:
    for key, check in table.items():
        if key in values:
            check(key, values[key])


def leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that is not a section, by its full name, with its value."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
