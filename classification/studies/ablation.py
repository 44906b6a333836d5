"""A sweep of a configuration's keys over values and seeds: its runs, and what they gave."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from tabulate import tabulate

from classification.auto_train import train_teacher
from classification.composition import run_name
from classification.config import load_config
from classification.results import commit
from classification.studies.grid import Combination, check_combinations, combinations
from classification.studies.seeds import Run
from classification.studies.sweep import PEAK, run_within
from kd_det.common.environment import hardware, versions
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically
from kd_det.common.processes import forwarding_sigterm
from kd_det.common.tables import summary

DIVERGED = "diverged"


@dataclass(frozen=True)
class Ablation:
    """What to sweep.

    Attributes:
        config_files: the configurations that, merged, are varied.
        opts: its overrides, KEY VALUE ..., the same in all runs.
        grid: each a key and its values.
        seeds: runs of each combination, SEED 1, 2, ...
        output_dir: where the runs' folders are.
        jobs: runs at a time, at the most.
        memory_gib: of all of them together; None: no limit.
        threads: CPU threads of each run; None: of several at a time an equal share of the cores, of one torch's choice.
    """

    config_files: tuple[str, ...]
    opts: tuple[str, ...]
    grid: tuple[tuple[str, ...], ...]
    seeds: int
    output_dir: Path
    jobs: int = 1
    memory_gib: float | None = None
    threads: int | None = None

    def run(self) -> list[dict[str, Any]]:
        """Trains what is not there yet; finished runs are reused, interrupted ones resumed.

        Returns:
            The rows, see ``make_rows``.

        Raises:
            SetupError: a setting or a combination cannot work; found before anything is trained.
            RuntimeError: a training failed.
        """
        self._check()
        chosen = combinations(self.grid)
        check_combinations(self.config_files, self.opts, chosen)
        runs = [run for combination in chosen for run in self._runs(combination)]
        for cfg in {run.cfg.TEACHER.dump(): run.cfg for run in runs}.values():
            if cfg.TEACHER.AUTO_TRAIN and cfg.TEACHER.WEIGHTS:
                train_teacher(cfg)
        print(f"{len(runs)} runs: {len(chosen)} combinations, {self.seeds} seeds each", flush=True)
        memory = None if self.memory_gib is None else 1024 * self.memory_gib
        with forwarding_sigterm():
            results = run_within(runs, outcome, self.jobs, memory)
        return make_rows(chosen, [results[i : i + self.seeds] for i in range(0, len(results), self.seeds)])

    @property
    def name(self) -> str:
        """What a run is called that nothing is varied of."""
        return run_name(load_config(self.config_files, self.opts))

    def _check(self) -> None:
        for option, value in (("--seeds", self.seeds), ("--jobs", self.jobs), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise SetupError(f"{option} {value}: give 1 or more.")
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise SetupError(f"--memory-gib {self.memory_gib}: give more than 0.")

    def _runs(self, combination: Combination) -> list[Run]:
        folder = str(self.output_dir / "runs" / combination.folder)
        overrides = (*self.opts, *combination.overrides, "OUTPUT_DIR", folder)
        threads = self.threads
        if threads is None and self.jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
        return [Run(self.config_files, overrides, seed, threads) for seed in range(1, self.seeds + 1)]

    def record(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What ablation.json holds."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return {
            "kind": "ablation",
            "config": " ".join(self.config_files),
            "opts": list(self.opts),
            "keys": [key for key, *_ in self.grid],
            "seeds": list(range(1, self.seeds + 1)),
            "rows": list(rows),
            "commit": commit(),
            "versions": versions(),
            "hardware": {**hardware(device), "runs_at_a_time": self.jobs},
        }


def outcome(run: Run) -> dict[str, Any]:
    """The run's top-1 after the last epoch and its peak memory; both None where a loss became nan or infinite."""
    try:
        result = run.result()
    except RuntimeError as error:
        if " is not finite in epoch " not in str(error):  # what a NonFiniteLossError says on the command line
            raise
        return {"last_top1": None, PEAK: None}
    return {"last_top1": result["last_top1"], PEAK: result[PEAK]}


def make_rows(chosen: Sequence[Combination], results: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a combination: {"values": {key: value}, "last_top1": [one a seed, None: diverged], PEAK: largest}."""
    return [
        {
            "values": dict(combination.values),
            "last_top1": [result["last_top1"] for result in group],
            PEAK: max((result[PEAK] for result in group if result[PEAK] is not None), default=None),
        }
        for combination, group in zip(chosen, results, strict=True)
    ]


def described(top1: Sequence[float | None]) -> str:
    """Mean ± sample standard deviation; how many seeds diverged where any did."""
    diverged = top1.count(None)
    return f"{DIVERGED} ({diverged} of {len(top1)})" if diverged else summary(top1, 2)


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, one row a combination."""
    keys = list(rows[0]["values"])
    body = [[*row["values"].values(), described(row["last_top1"]), len(row["last_top1"])] for row in rows]
    return tabulate(body, [*keys, "top-1", "seeds"], tablefmt="github", disable_numparse=True)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line a combination: its values, mean, std and seeds; mean and std are empty where a seed diverged."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*rows[0]["values"], "top1_mean", "top1_std", "seeds"])
    for row in rows:
        top1 = row["last_top1"]
        figures = ["", ""] if None in top1 else [fmean(top1), stdev(top1) if len(top1) > 1 else ""]
        writer.writerow([*row["values"].values(), *figures, len(top1)])
    write_atomically(path, text.getvalue().encode())
