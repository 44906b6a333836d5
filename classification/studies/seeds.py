"""Runs configurations over seeds, each run as a command of its own, and collects their results."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from classification.auto_train import train_teacher
from classification.composition import method_name
from classification.config import check_config, load_config
from classification.distillers import distiller_class
from classification.results import RESULT
from kd_det.common.command_line import split_values
from kd_det.common.config_files import shipped_name
from kd_det.common.errors import SetupError
from kd_det.common.files import read_json, write_json
from kd_det.common.processes import forwarding_sigterm, run_side_by_side
from kd_det.common.registry import import_options
from kd_det.common.run_steps import finish_run
from kd_det.common.tables import markdown, summary

FIGURES = ("last_top1", "best_top1", "last_top5", "best_top5", "seconds_per_epoch", "peak_memory_mib")


@dataclass(frozen=True)
class Choice:
    """One configuration: files, merged from left to right, and overrides.

    As a string it is what follows ``--config-file`` on a command line.
    """

    files: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Sequence[str]) -> Choice:
        """Reads the values of ``--config-file``: FILE ... KEY VALUE ..."""
        files, overrides = split_values(values)
        return cls(tuple(map(shipped_name, files)), tuple(overrides))

    def __str__(self) -> str:
        return shlex.join([*self.files, *self.overrides])


def choices(given: Sequence[Sequence[str]], methods: Sequence[str], pairs: Sequence[str]) -> list[Choice]:
    """Every method with every pair, then the configurations that ``--config-file`` gives.

    Args:
        given: the values of each ``--config-file``.
        methods: the methods' files.
        pairs: the pairs' files.

    Raises:
        SetupError: nothing is given, or methods without pairs or the reverse, or a file does not exist.
    """
    if bool(methods) != bool(pairs):
        raise SetupError("--methods and --pairs go together: each method is run with each pair. Give both, or neither.")
    found = [Choice.of([method, pair]) for pair in pairs for method in methods]
    found += [Choice.of(values) for values in given]
    if not found:
        raise SetupError("there is nothing to run. Give --methods and --pairs, or --config-file.")
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class TrainingRun:
    """One configuration with one seed: a training, finished or not."""

    config_files: tuple[str, ...]
    overrides: tuple[str, ...]
    seed: int
    threads: int | None = None

    @cached_property
    def cfg(self) -> CfgNode:
        """The full configuration; every seed has its own OUTPUT_DIR."""
        cfg = load_config(self.config_files, self.overrides)
        cfg.SEED, cfg.OUTPUT_DIR = self.seed, str(Path(cfg.OUTPUT_DIR) / f"seed{self.seed}")
        return cfg

    def result(self) -> dict[str, Any]:
        """The content of its result.json; the run is trained or resumed now if it is not finished.

        Raises:
            CommandError: the training failed.
        """
        cfg = self.cfg
        folder = Path(cfg.OUTPUT_DIR)
        command = [sys.executable, "-m", "classification.train", "--resume", *import_options()]
        command += ["--config-file", *self.config_files]
        command += [*self.overrides, "SEED", str(self.seed), "OUTPUT_DIR", cfg.OUTPUT_DIR]

        def finished() -> dict[str, Any] | None:
            result = read_json(folder / RESULT)
            return result if result.get("config") == yaml.safe_load(cfg.dump()) else None

        return finish_run(
            folder, finished, lambda: command, lambda: read_json(folder / RESULT), self.threads, progress=["top-1 "]
        )


def run_seeds(
    chosen: Sequence[Choice], seeds: Sequence[int], overrides: Sequence[str], jobs: int, threads: int | None
) -> list[dict[str, Any]]:
    """Runs every configuration with every seed, ``jobs`` at a time. Missing teachers are trained first.

    Args:
        chosen: what to run.
        seeds: values of SEED.
        overrides: KEY VALUE ..., the same for all configurations; they win over a configuration's own.
        jobs: runs at a time.
        threads: CPU threads of each run; None: torch's choice.

    Returns:
        For each configuration: {"config": what follows --config-file, "data": ..., "method": ..., "seeds": [...],
        each of FIGURES: [one a seed], ...}.

    Raises:
        SetupError: a configuration cannot work, or two of them have the same OUTPUT_DIR.
        CommandError: a training failed.
    """
    runs = [
        [TrainingRun(choice.files, (*choice.overrides, *overrides), seed, threads) for seed in seeds]
        for choice in chosen
    ]
    _check_folders(chosen, [first.cfg.OUTPUT_DIR for first, *_ in runs])
    for first, *_ in runs:
        check_config(first.cfg)
        if first.cfg.TEACHER.AUTO_TRAIN and distiller_class(first.cfg.DISTILLER).needs_teacher:
            train_teacher(first.cfg)
    with forwarding_sigterm():
        results = run_side_by_side([run for group in runs for run in group], TrainingRun.result, jobs)
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
                f"{str(other)!r} and {str(choice)!r} have the same folder, {str(Path(folder).parent)!r}. Set "
                "OUTPUT_DIR for one of them, after its files, or run them in two commands."
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
    """Writes ``rows`` to the results file. They replace the rows of the same configurations; other rows stay.

    Args:
        path: the file; created if it does not exist.
        rows: of ``run_seeds``.
        data: the name of the data set.

    Raises:
        SetupError: the file exists and is not a results file.
    """
    if path.is_file():
        try:
            previous = json.loads(path.read_text())["runs"]
        except (ValueError, KeyError, TypeError) as error:
            raise SetupError(f"--results {str(path)!r} is not a results file. Move it or give another name.") from error
    else:
        previous = []
    new = {row["config"]: row for row in rows}
    kept = [new.pop(row["config"], row) for row in previous]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"kind": "classification", "data": data, "runs": [*kept, *new.values()]})


def seeds_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with one row for each configuration; ± is the sample standard deviation over the seeds."""
    columns = {"last_top1": "top-1", "best_top1": "best top-1", "seconds_per_epoch": "s/epoch"}
    body = [
        [row["config"], *(summary(row[key], 2) for key in columns), row["extra_parameters"], len(row["seeds"])]
        for row in rows
    ]
    return markdown(body, ["configuration", *columns.values(), "extra parameters", "seeds"])
