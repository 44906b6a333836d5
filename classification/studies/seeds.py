"""Runs configurations over seeds, each run a command of its own, and puts their results together."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode
from tabulate import tabulate

from classification.building import check_config
from classification.composition import method_name
from classification.config import load_config
from classification.distillers import distiller_class
from classification.results import RESULT
from classification.teacher import train_teacher
from kd_det.common.command_line import split_values
from kd_det.common.config_files import shipped_name
from kd_det.common.errors import SetupError
from kd_det.common.files import write_json
from kd_det.common.processes import forwarding_sigterm, stream
from kd_det.common.registry import import_options
from kd_det.common.run_steps import read_json
from kd_det.common.tables import summary

FIGURES = ("last_top1", "best_top1", "last_top5", "best_top5", "seconds_per_epoch", "peak_memory_mib")


@dataclass(frozen=True)
class Choice:
    """One configuration: files, merged from left to right, and what is set beyond them.

    As a string it is what follows ``--config-file`` on a command line.
    """

    files: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Sequence[str]) -> Choice:
        """From the values of ``--config-file``: FILE ... KEY VALUE ..."""
        files, overrides = split_values(values)
        return cls(tuple(map(shipped_name, files)), tuple(overrides))

    def __str__(self) -> str:
        return shlex.join([*self.files, *self.overrides])


def choices(given: Sequence[Sequence[str]], methods: Sequence[str], pairs: Sequence[str]) -> list[Choice]:
    """Each of ``given``, the values of a ``--config-file``, and each method with each pair.

    Raises:
        SetupError: there is none, or methods without pairs or the reverse; or a file is not there.
    """
    if bool(methods) != bool(pairs):
        raise SetupError("--methods and --pairs go together: each method is run with each pair. Give both, or neither.")
    found = [Choice.of([method, pair]) for pair in pairs for method in methods]
    found += [Choice.of(values) for values in given]
    if not found:
        raise SetupError("there is nothing to run. Give --methods and --pairs, or --config-file.")
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Run:
    """One configuration with one seed."""

    config_files: tuple[str, ...]
    overrides: tuple[str, ...]
    seed: int
    threads: int | None = None

    @cached_property
    def cfg(self) -> CfgNode:
        cfg = load_config(self.config_files, self.overrides)
        cfg.SEED, cfg.OUTPUT_DIR = self.seed, str(Path(cfg.OUTPUT_DIR) / f"seed{self.seed}")
        return cfg

    def result(self) -> dict[str, Any]:
        """Its result; trained now if it is not there, resumed where it was interrupted.

        Raises:
            RuntimeError: the training failed.
        """
        cfg = self.cfg
        path = Path(cfg.OUTPUT_DIR) / RESULT
        if read_json(path).get("config") != yaml.safe_load(cfg.dump()):
            command = [sys.executable, "-m", "classification.train", "--resume", *import_options()]
            command += ["--config-file", *self.config_files]
            command += [*self.overrides, "SEED", str(self.seed), "OUTPUT_DIR", cfg.OUTPUT_DIR]
            print(f"== {cfg.OUTPUT_DIR}", flush=True)
            stream(command, self.threads, progress=["top-1 "])
        return read_json(path)


def run_seeds(
    chosen: Sequence[Choice], seeds: Sequence[int], overrides: Sequence[str], jobs: int, threads: int | None
) -> list[dict[str, Any]]:
    """Every configuration with every seed, ``jobs`` at a time, their teachers first.

    Args:
        chosen: what to run.
        seeds: values of SEED.
        overrides: KEY VALUE ... of all of them, after their own.
        jobs: runs at a time.
        threads: CPU threads of each run; None: torch's choice.

    Returns:
        For each configuration: {"config": what follows --config-file, "data": ..., "method": ..., "seeds": [...],
        FIGURES: [one a seed], ...}.

    Raises:
        SetupError: a configuration cannot work, or two of them have the same OUTPUT_DIR.
        RuntimeError: a training failed.
    """
    runs = [
        [Run(choice.files, (*choice.overrides, *overrides), seed, threads) for seed in seeds] for choice in chosen
    ]
    _check_folders(chosen, [first.cfg.OUTPUT_DIR for first, *_ in runs])
    for first, *_ in runs:
        check_config(first.cfg)
        if first.cfg.TEACHER.AUTO_TRAIN and distiller_class(first.cfg.DISTILLER).needs_teacher:
            train_teacher(first.cfg)
    with forwarding_sigterm(), ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(Run.result, [run for group in runs for run in group]))
    groups = [results[i : i + len(seeds)] for i in range(0, len(results), len(seeds))]
    return [
        _together(choice, first.cfg, seeds, group)
        for choice, (first, *_), group in zip(chosen, runs, groups, strict=True)
    ]


def _check_folders(chosen: Sequence[Choice], folders: Sequence[str]) -> None:
    seen: dict[str, Choice] = {}
    for choice, folder in zip(chosen, folders, strict=True):
        other = seen.setdefault(folder, choice)
        if other is not choice:
            raise SetupError(
                f"{str(other)!r} and {str(choice)!r} have the same folder, {str(Path(folder).parent)!r}. Give one of "
                "them an OUTPUT_DIR, after its files, or run them in turn."
            )


def _together(choice: Choice, cfg: CfgNode, seeds: Sequence[int], results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "config": str(choice),
        "data": cfg.DATA.NAME,
        "method": method_name(cfg),
        "distiller": cfg.DISTILLER,
        "student": cfg.STUDENT.NAME,
        "teacher": cfg.TEACHER.NAME,
        "seeds": list(seeds),
        **{figure: [result[figure] for result in results] for figure in FIGURES},
        "epochs": results[0]["epochs"],
        "extra_parameters": results[0]["extra_parameters"],
        **{key: results[0][key] for key in ("commit", "versions", "hardware")},
    }


def update_results(path: Path, rows: list[dict[str, Any]], data: str) -> None:
    """Puts ``rows`` into the results file, in place of those of the same configurations; the others stay."""
    if path.is_file():
        try:
            previous = json.loads(path.read_text())["runs"]
        except (ValueError, KeyError, TypeError) as error:
            raise SetupError(f"--results {str(path)!r} is no results file; move it away or name another.") from error
    else:
        previous = []
    new = {row["config"]: row for row in rows}
    kept = [new.pop(row["config"], row) for row in previous]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"kind": "classification", "data": data, "runs": [*kept, *new.values()]})


def make_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, one row a configuration; ± is the sample standard deviation over the seeds."""
    columns = {"last_top1": "top-1", "best_top1": "best top-1", "seconds_per_epoch": "s/epoch"}
    body = [
        [row["config"], *(summary(row[key], 2) for key in columns), row["extra_parameters"], len(row["seeds"])]
        for row in rows
    ]
    headers = ["configuration", *columns.values(), "extra parameters", "seeds"]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)
