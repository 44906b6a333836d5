"""The combinations of a sweep: which there are, and that each of them can work."""

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
    """One value of each key, as given on the command line."""

    values: tuple[tuple[str, str], ...]  # (key, value)

    @property
    def overrides(self) -> tuple[str, ...]:
        """KEY VALUE ..."""
        return tuple(part for pair in self.values for part in pair)

    @property
    def folder(self) -> str:
        """A name for its runs' folder that no other combination of the sweep has."""
        return ",".join(f"{key}={quote(value, safe='()[], ')}" for key, value in self.values)

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.values)


def combinations(grid: Sequence[Sequence[str]]) -> list[Combination]:
    """All of them, the last key's values changing fastest.

    Args:
        grid: each a key and its values.

    Raises:
        SetupError: a key has no values, a value twice, comes twice, or is the sweep's own.
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
            raise SetupError(f"--grid {key} {' '.join(values)}: a value is there twice; leave one out.")
    return [Combination(tuple(zip(keys, values, strict=True))) for values in product(*(values for _, *values in grid))]


def value_of(cfg: CfgNode, key: str) -> Any:
    """What ``cfg`` has under a key with dots."""
    return reduce(lambda node, name: node[name], key.split("."), cfg)


def check_combinations(config_files: Sequence[str], opts: Sequence[str], chosen: Sequence[Combination]) -> None:
    """Builds the networks of every combination and forgets them.

    Teachers that are yet to be trained have random weights for that.

    Raises:
        SetupError: a combination cannot work, or two are the same for being written differently (1.0 and 1.00).
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
    """Raises ``SetupError`` where student, teacher or distiller cannot be built."""
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
    """The data of ``cfg``, built once for the combinations that share them; one set is kept at a time."""
    key = cfg.DATA.dump() + str(cfg.SOLVER.CHANNELS_LAST)
    if key not in built:
        built.clear()
        built[key] = build_data(cfg, "cpu")
    return built[key]
