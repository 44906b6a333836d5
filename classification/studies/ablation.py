"""A sweep of a configuration's keys over values and seeds: its runs, table and heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from classification.auto_train import train_teacher
from classification.composition import run_name
from classification.config import load_config
from classification.results import commit
from classification.studies.grid import Combination, check_combinations, combinations
from classification.studies.seeds import TrainingRun
from kd_det.common.environment import hardware, versions
from kd_det.common.errors import SetupError
from kd_det.common.files import write_csv
from kd_det.common.processes import PEAK, forwarding_sigterm, run_side_by_side, threads_of_each
from kd_det.common.tables import markdown, summary

DIVERGED = "diverged"


@dataclass(frozen=True)
class Ablation:
    """What to sweep.

    Attributes:
        config_files: the configurations, merged from left to right, that the sweep varies.
        opts: overrides, KEY VALUE ..., the same in all runs.
        grid: one entry for each key: the key and its values.
        seeds: runs of each combination, SEED 1, 2, ...
        output_dir: the folder for the runs' folders.
        jobs: runs at a time, at most.
        memory_gib: the limit for all runs at a time together; None: no limit.
        threads: CPU threads of each run; None: ``threads_of_each``.
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
        """Trains the runs that are not finished. Finished runs are reused, interrupted ones resumed.

        Returns:
            The rows; see ``make_rows``.

        Raises:
            SetupError: a setting or a combination cannot work; checked before anything is trained.
            CommandError: a training failed.
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
            results = run_side_by_side(runs, outcome, self.jobs, memory)
        return make_rows(chosen, [results[i : i + self.seeds] for i in range(0, len(results), self.seeds)])

    @property
    def name(self) -> str:
        """The name of a run of the configuration that the sweep varies."""
        return run_name(load_config(self.config_files, self.opts))

    def _check(self) -> None:
        for option, value in (("--seeds", self.seeds), ("--jobs", self.jobs), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise SetupError(f"{option} {value}: give 1 or more.")
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise SetupError(f"--memory-gib {self.memory_gib}: give more than 0.")

    def _runs(self, combination: Combination) -> list[TrainingRun]:
        folder = str(self.output_dir / "runs" / combination.folder)
        overrides = (*self.opts, *combination.overrides, "OUTPUT_DIR", folder)
        threads = threads_of_each(self.jobs) if self.threads is None else self.threads
        return [TrainingRun(self.config_files, overrides, seed, threads) for seed in range(1, self.seeds + 1)]

    def record(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The content of ablation.json."""
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


def outcome(run: TrainingRun) -> dict[str, Any]:
    """The run's top-1 after the last epoch and its peak memory; both None if a loss was not finite."""
    try:
        result = run.result()
    except RuntimeError as error:
        if " is not finite in epoch " not in str(error):  # the text of a NonFiniteLossError
            raise
        return {"last_top1": None, PEAK: None}
    return {"last_top1": result["last_top1"], PEAK: result[PEAK]}


def make_rows(chosen: Sequence[Combination], results: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each combination.

    Returns:
        {"values": {key: value}, "last_top1": [one a seed; None: diverged], PEAK: the largest of its runs, MiB}.
    """
    return [
        {
            "values": dict(combination.values),
            "last_top1": [result["last_top1"] for result in group],
            PEAK: max((result[PEAK] for result in group if result[PEAK] is not None), default=None),
        }
        for combination, group in zip(chosen, results, strict=True)
    ]


def described(top1: Sequence[float | None]) -> str:
    """Mean ± sample standard deviation; if seeds diverged, how many."""
    finite = [value for value in top1 if value is not None]
    if len(finite) < len(top1):
        return f"{DIVERGED} ({len(top1) - len(finite)} of {len(top1)})"
    return summary(finite, 2)


def ablation_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with one row for each combination."""
    keys = list(rows[0]["values"])
    body = [[*row["values"].values(), described(row["last_top1"]), len(row["last_top1"])] for row in rows]
    return markdown(body, [*keys, "top-1", "seeds"])


def write_ablation_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes one line for each combination: values, mean, std and seeds. If a seed diverged, mean and std are empty."""
    header = [*rows[0]["values"], "top1_mean", "top1_std", "seeds"]
    return write_csv(path, header, ([*row["values"].values(), *_figures(row["last_top1"])] for row in rows))


def _figures(top1: Sequence[float | None]) -> list[float | str]:
    """Mean, std and seeds."""
    finite = [value for value in top1 if value is not None]
    if len(finite) < len(top1):
        return ["", "", len(top1)]
    return [fmean(finite), stdev(finite) if len(finite) > 1 else "", len(finite)]


@dataclass(frozen=True)
class HeatMap:
    """The cells of a heat map. Columns are the values of the last key, rows those of the others together."""

    row_key: str
    column_key: str
    row_values: list[str]
    column_values: list[str]
    means: np.ndarray  # (rows, columns) float64; nan: a seed diverged
    texts: list[list[str]]


def heat_map(rows: Sequence[dict[str, Any]]) -> HeatMap:
    """The cells of a sweep's rows, one for each combination."""
    *first, last = rows[0]["values"]
    places = {(", ".join(row["values"][key] for key in first), row["values"][last]): row["last_top1"] for row in rows}
    row_values, column_values = (list(dict.fromkeys(place[side] for place in places)) for side in (0, 1))
    cells = [[places[row, column] for column in column_values] for row in row_values]
    means = np.array([[np.nan if None in cell else fmean(cell) for cell in line] for line in cells])
    texts = [[described(cell).replace(" ±", "\n±").replace(" (", "\n(") for cell in line] for line in cells]
    return HeatMap(",\n".join(first), last, row_values, column_values, means, texts)


def draw_heat_map(data: HeatMap, title: str) -> Figure:
    """The means as colours and numbers. A grey cell: a seed diverged."""
    height, width = data.means.shape
    figure = Figure(figsize=(max(6.5, 2.2 + 1.1 * width), max(2.4, 1.6 + 0.8 * height)), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#bbbbbb")
    picture = axes.imshow(data.means, cmap=colours, aspect="auto")
    finite = data.means[np.isfinite(data.means)]
    dark = finite.min() + 0.6 * np.ptp(finite) if finite.size else 0.0
    for row, column in np.ndindex(height, width):
        colour = "white" if data.means[row, column] <= dark else "black"  # black on grey as well
        axes.text(column, row, data.texts[row][column], color=colour, ha="center", va="center", fontsize=9)
    axes.set_xticks(range(width), data.column_values)
    axes.set_yticks(range(height) if data.row_key else [], data.row_values if data.row_key else [])
    axes.set(xlabel=data.column_key, ylabel=data.row_key)
    axes.set_title(title, fontsize=10)
    if finite.size:
        figure.colorbar(picture, ax=axes, label="top-1, %")
    return figure
