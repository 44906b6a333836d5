"""Runs configurations over seeds, each run a command of its own, and puts their results together."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode
from tabulate import tabulate

from classification.building import check_config
from classification.config import load_config
from classification.results import RESULT
from classification.teacher import train_teacher
from kd_det.benchmark.process import forwarding_sigterm, stream
from kd_det.benchmark.runs import read_json
from kd_det.benchmark.table import summary
from kd_det.common.errors import SetupError
from kd_det.common.files import write_json

FIGURES = ("last_top1", "best_top1", "last_top5", "best_top5", "seconds_per_epoch", "peak_memory_mib")


@dataclass(frozen=True)
class Run:
    """One configuration with one seed."""

    config_file: str
    overrides: tuple[str, ...]
    seed: int
    threads: int | None = None

    @property
    def cfg(self) -> CfgNode:
        cfg = load_config(self.config_file, self.overrides)
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
            command = [sys.executable, "-m", "classification.train", "--config-file", self.config_file, "--resume"]
            command += [*self.overrides, "SEED", str(self.seed), "OUTPUT_DIR", cfg.OUTPUT_DIR]
            print(f"== {cfg.OUTPUT_DIR}", flush=True)
            stream(command, self.threads, progress=["top-1 "])
        return read_json(path)


def run_seeds(
    config_files: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], jobs: int, threads: int | None
) -> list[dict[str, Any]]:
    """Every configuration with every seed, ``jobs`` at a time, their teachers first.

    Returns:
        For each configuration: {"config": name, "seeds": [...], FIGURES: [one a seed], ...}.

    Raises:
        SetupError: a configuration cannot work.
        RuntimeError: a training failed.
    """
    runs = [[Run(file, tuple(overrides), seed, threads) for seed in seeds] for file in config_files]
    for first, *_ in runs:
        check_config(first.cfg)
        if first.cfg.TEACHER.AUTO_TRAIN:
            train_teacher(first.cfg)
    with forwarding_sigterm(), ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(Run.result, [run for group in runs for run in group]))
    groups = [results[i : i + len(seeds)] for i in range(0, len(results), len(seeds))]
    return [_together(file, seeds, group) for file, group in zip(config_files, groups, strict=True)]


def _together(config_file: str, seeds: Sequence[int], results: list[dict[str, Any]]) -> dict[str, Any]:
    path = Path(config_file)
    return {
        "config": f"{path.parent.name}/{path.stem}",
        "distiller": results[0]["config"]["DISTILLER"],
        "student": results[0]["config"]["STUDENT"]["NAME"],
        "teacher": results[0]["config"]["TEACHER"]["NAME"],
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
