"""The combinations of a sweep, and the check that each of them can work."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from fvcore.common.config import CfgNode

from classification.checkpoint import STUDENT, save_student, weights_path
from classification.config import check_config, load_config
from classification.data import Data, build_data
from classification.distillers import distiller_class
from classification.networks import build_networks, create_from
from kd_det.common.errors import SetupError

RESERVED = {"SEED": "--seeds", "OUTPUT_DIR": "--output-dir"}


@dataclass(frozen=True)
class Combination:
    """One value for each key of the sweep, as written on the command line."""

    values: tuple[tuple[str, str], ...]  # (key, value)

    @property
    def overrides(self) -> tuple[str, ...]:
        """KEY VALUE ..."""
        return tuple(part for pair in self.values for part in pair)

    @property
    def folder(self) -> str:
        """The name of its runs' folder, unique in the sweep."""
        return ",".join(f"{key}={quote(value, safe='()[], ')}" for key, value in self.values)

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.values)


def combinations(grid: Sequence[Sequence[str]]) -> list[Combination]:
    """All combinations; the values of the last key change fastest.

    Args:
        grid: one entry for each key: the key and its values.

    Raises:
        SetupError: a key has no values, or one value twice, or is given twice, or another option sets it.
    """
    keys = [key for key, *_ in grid]
    for key, *values in grid:
        if key in RESERVED:
            raise SetupError(f"--grid {key}: {RESERVED[key]} sets it.")
        if keys.count(key) > 1:
            raise SetupError(f"--grid {key} is given twice; give all its values once.")
        if not values:
            raise SetupError(f"--grid {key} has no values; write --grid {key} VALUE VALUE ...")
        if len(set(values)) < len(values):
            raise SetupError(f"--grid {key} {' '.join(values)}: a value is listed twice; leave one out.")
    return [Combination(tuple(zip(keys, values, strict=True))) for values in product(*(values for _, *values in grid))]


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key with dots."""
    return reduce(lambda node, name: node[name], key.split("."), cfg)


def check_combinations(config_files: Sequence[str], opts: Sequence[str], chosen: Sequence[Combination]) -> None:
    """Builds the networks of every combination, and discards them.

    A teacher that is not trained yet gets random weights for this check.

    Args:
        config_files: merged from left to right.
        opts: overrides, KEY VALUE ..., the same for all combinations.
        chosen: at least one combination.

    Raises:
        SetupError: a combination cannot work, or two are the same, written differently (1.0 and 1.00).
    """
    both = sorted({key for key, _ in chosen[0].values} & set(opts[::2]))
    if both:
        raise SetupError(f"--opts {both[0]} is swept by --grid as well; leave one of the two out.")
    seen: dict[tuple[Any, ...], Combination] = {}
    built: dict[str, Data] = {}
    for combination in chosen:
        try:
            cfg = load_config(config_files, [*opts, *combination.overrides])
            check_config(cfg)
            same = seen.setdefault(tuple(value_of(cfg, key) for key, _ in combination.values), combination)
            if same is not combination:
                raise SetupError(f"it is the same as {same}; leave one out.")
            check_networks(cfg, _data(cfg, built))
        except SetupError as error:
            raise SetupError(f"--grid, {combination}: {error}") from error


def check_networks(cfg: CfgNode, data: Data) -> None:
    """Raises ``SetupError`` if student, teacher or distiller cannot be built."""
    with tempfile.TemporaryDirectory() as folder:
        if _teacher_is_to_come(cfg):
            cfg = cfg.clone()
            cfg.TEACHER.WEIGHTS = str(_stand_in(cfg, data, Path(folder)))
        build_networks(cfg, data, torch.device("cpu"))


def _teacher_is_to_come(cfg: CfgNode) -> bool:
    node = cfg.TEACHER
    wanted = distiller_class(cfg.DISTILLER).needs_teacher and node.NAME and node.WEIGHTS and node.AUTO_TRAIN
    return bool(wanted) and not weights_path(node.WEIGHTS).is_file()


def _stand_in(cfg: CfgNode, data: Data, folder: Path) -> Path:
    path = folder / STUDENT
    save_student(path, create_from(cfg.TEACHER, data), {"name": cfg.TEACHER.NAME, "num_classes": data.num_classes})
    return path


def _data(cfg: CfgNode, built: dict[str, Data]) -> Data:
    """The data of ``cfg``, built once for combinations with the same data; only the last data are kept."""
    key = cfg.DATA.dump() + str(cfg.SOLVER.CHANNELS_LAST)
    if key not in built:
        built.clear()
        built[key] = build_data(cfg, "cpu")
    return built[key]
