"""Composes a run's configuration from files and overrides, and names the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode

from classification.distillers import DISTILLERS
from classification.models import short_name
from kd_det.common.config_files import find_configs, leaves, log_differences
from kd_det.common.config_merge import merge_config, merge_file
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.yaml_files import read_own_content

logger = logging.getLogger(__name__)

METHODS = "METHODS"
# Before the name of a method whose logits are standardised (Sun et al. 2024), and of one trained with DOT's optimiser.
LSKD, DOT = "lskd_", "dot_"
SDD_BASES = ("kd", "dkd", "nkd")
OUTPUT = "output"
ALONE = "vanilla"


def compose(cfg: CfgNode, config_files: str | Sequence[str], overrides: Sequence[object]) -> None:
    """Merges files, then their settings for the run's method, then overrides. Sets OUTPUT_DIR if it is empty.

    A file may have a section ``METHODS`` with settings for single methods: ``METHODS: {kd: {CE_WEIGHT: 0.1}, sdd_kd:
    {...}}``, or ``sdd`` for every SDD.BASE. They apply only to runs with that method. So the files of a method and of a
    pair give the same run in either order. ``kd`` applies to ``lskd_kd`` (STANDARDIZE True) and ``dot_kd``
    (SOLVER.DOT_DELTA) as well, and so do the sections of ``sdd`` and of ``reviewkd`` to ``sdd+reviewkd``; the section
    of the more special name wins.

    Args:
        config_files: see ``merge_config``.
        overrides: KEY VALUE ...

    Raises:
        SetupError: see ``merge_config``; or METHODS has an unknown method or key, or sets a key to two values for two
            methods of a run.
    """
    cfg[METHODS] = CfgNode()
    contents, written = {}, {}
    for name, path in find_configs(config_files).items():
        cfg[METHODS].set_new_allowed(True)  # also in the sections that the previous file has added
        contents[name] = merge_file(cfg, path)
        written[name] = read_own_content(path)
    log_differences(contents)
    by_method = _overrides_by_method(cfg, cfg.pop(METHODS))
    merge_config(cfg, "", overrides, source="overrides")  # they may choose the method
    own = _own_overrides(cfg, by_method, overrides)
    _log_unused(written, own)
    merge_config(cfg, "", [*own, *overrides], source="overrides")
    if cfg.OUTPUT_DIR == "":
        cfg.OUTPUT_DIR = f"{OUTPUT}/{run_name(cfg)}"


def _overrides_by_method(cfg: CfgNode, sections: CfgNode) -> dict[str, list[object]]:
    """KEY VALUE ... of each method in METHODS, all of them checked."""
    known = [*DISTILLERS, *(f"sdd_{base}" for base in SDD_BASES)]
    for name in sections:
        if not set(name.removeprefix(DOT).removeprefix(LSKD).split("+")) <= set(known):
            raise SetupError(f"{METHODS}.{name}: there is no such method.{did_you_mean(name, known)}")
    return {name: _as_overrides(cfg, f"{METHODS}.{name}", section) for name, section in sections.items()}


def _as_overrides(cfg: CfgNode, source: str, section: object) -> list[object]:
    """KEY VALUE ... of a section, after a check that they fit ``cfg``."""
    if not isinstance(section, CfgNode):
        raise SetupError(f"{source} is {section!r}; it must be a section of keys and values.")
    found = [part for leaf in leaves(section) for part in leaf]
    try:
        merge_config(cfg.clone(), "", found, source=source)
    except SetupError as error:
        raise SetupError(f"{source}: {error}") from error
    return found


def _own_overrides(cfg: CfgNode, by_method: Mapping[str, list[object]], overrides: Sequence[object]) -> list[object]:
    """KEY VALUE ... that METHODS has for the run: those of its parts, then those of the more special names."""
    parts = cfg.DISTILLER.split("+")
    own: list[object] = []
    setters: dict[object, tuple[str, object]] = {}
    for part in parts:
        for name in dict.fromkeys((part, _base_name(part, cfg))):
            section = by_method.get(name, [])
            for key, value in zip(section[::2], section[1::2], strict=True):
                other, earlier = setters.setdefault(key, (part, value))
                if other != part and earlier != value and key not in overrides[::2]:
                    raise SetupError(
                        f"DISTILLER {cfg.DISTILLER!r}: {METHODS} sets {key} to {earlier!r} for {other!r} and to "
                        f"{value!r} for {part!r}. Choose one: add {key} VALUE to the command line."
                    )
            own += section
    whole = "+".join(_base_name(part, cfg) for part in parts)
    special = [cfg.DISTILLER, whole] if len(parts) > 1 else []
    lskd = [f"{LSKD}{name}" for name in (cfg.DISTILLER, whole)] if cfg.STANDARDIZE else []
    dot = [f"{DOT}{name}" for name in (cfg.DISTILLER, whole, *lskd)] if cfg.SOLVER.DOT_DELTA else []
    return own + [part for name in dict.fromkeys((*special, *lskd, *dot)) for part in by_method.get(name, ())]


def _log_unused(contents: Mapping[str, Mapping[str, Any]], own: Sequence[object]) -> None:
    """Logs the values that METHODS of another file replaces, except for those of a method's own file, which are meant
    as defaults.

    Args:
        contents: what is written in each file itself.
        own: KEY VALUE ... of METHODS.
    """
    used = dict(zip(own[::2], own[1::2], strict=True))
    for name, content in contents.items():
        values = dict(leaves(content))
        methods = content.get(METHODS, {})
        here = {key for section in methods.values() if isinstance(section, Mapping) for key, _ in leaves(section)}
        unused = [key for key in used if key in values and values[key] != used[key] and key not in here]
        if unused and "DISTILLER" not in values:
            changes = ", ".join(f"{key} {used[key]!r} instead of {values[key]!r}" for key in unused)
            logger.warning("%s of this method overrides %s: %s", METHODS, name, changes)


def method_name(cfg: CfgNode) -> str:
    """The method's name in the names of files: DISTILLER's value, with ``sdd_<SDD.BASE>`` for SDD.

    ``lskd_`` comes before it with STANDARDIZE True, and before that ``dot_`` with SOLVER.DOT_DELTA.
    """
    whole = "+".join(_base_name(part, cfg) for part in cfg.DISTILLER.split("+"))
    return f"{DOT * bool(cfg.SOLVER.DOT_DELTA)}{LSKD * bool(cfg.STANDARDIZE)}{whole}"


def _base_name(distiller: str, cfg: CfgNode) -> str:
    return f"sdd_{cfg.SDD.BASE}" if distiller == "sdd" else distiller


def run_name(cfg: CfgNode) -> str:
    """The name of the run: "cifar100/dkd_res32x4_res8x4", "cifar100/vanilla_res8x4" for a model alone."""
    alone = cfg.DISTILLER == "none"
    models = [cfg.STUDENT.NAME] if alone or not cfg.TEACHER.NAME else [cfg.TEACHER.NAME, cfg.STUDENT.NAME]
    # The literature on CIFAR-100 writes "res8x4" for "resnet8x4". Networks for the digits keep their full names.
    whole = cfg.DATA.NAME == "digits"
    shown = [name if whole and name.startswith("resnet") else short_name(name) for name in models]
    return f"{cfg.DATA.NAME}/{'_'.join([ALONE if alone else method_name(cfg), *shown])}"
