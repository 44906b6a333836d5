"""The rows of the COCO table over seeds: each run as a command of its own, and the results file of MODEL_ZOO.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kd_det.common.environment import hardware, versions
from kd_det.common.errors import SetupError, one_of
from kd_det.common.files import read_json, write_json
from kd_det.common.processes import forwarding_sigterm
from kd_det.common.run_steps import run_step
from kd_det.config import load_config
from kd_det.studies.methods import title
from kd_det.studies.metrics import average_precision, cost, read_metrics

BENCHMARK = "COCO val2017, Faster R-CNN"
WEIGHTS = "model_final.pth"  # Detectron2's name for the last checkpoint
# Zhao et al. 2022, table 10: the ends of the configurations' names, to teacher and student as the table calls them.
PAIRS = {
    "r101_r18": ("R101-FPN", "R18-FPN"),
    "r101_r50": ("R101-FPN", "R50-FPN"),
    "r50_mv2": ("R50-FPN", "MobileNetV2-FPN"),
}
METHODS = ("kd", "fitnet", "fgfi", "reviewkd", "dkd", "dkd_reviewkd")
METRICS = ("AP", "AP50", "AP75")
COSTS = ("best_AP", "seconds_per_iteration", "memory_mib")


@dataclass(frozen=True)
class CocoStudy:
    """What to run.

    Attributes:
        pairs: of ``PAIRS``. Their students are trained alone as well.
        methods: of ``METHODS``.
        seeds: runs of each row, SEED 1, 2, ...
        output_dir: the folder of the runs' folders.
        results: the results file; rows of other pairs and methods in it stay.
        opts: overrides, KEY VALUE ..., the same in all runs.
        num_gpus: of each run; the runs go one after the other.
        start: a shipped configuration that goes after each run's own, such as "coco/r50_published.yaml"; "": none.
    """

    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    output_dir: Path
    results: Path
    opts: tuple[str, ...] = ()
    num_gpus: int = 1
    start: str = ""

    def run(self, command: str) -> dict[str, Any]:
        """Runs what is not finished. Writes the results file after each row; returns its content.

        Args:
            command: the command line, for the record.

        Raises:
            SetupError: a setting is not valid, or the results file is of another schedule. Checked first.
            CommandError: a training failed. The same command goes on there.
        """
        self._check()
        content = self._record(command)
        with forwarding_sigterm():
            for pair in self.pairs:
                teacher, student = PAIRS[pair]
                alone = self._runs(f"student_{pair.split('_')[1]}")
                for method in self.methods:
                    name = f"{method}_{pair}"
                    runs = self._runs(name)
                    row: dict[str, Any] = {"teacher": teacher, "student": student, "method": title(method)}
                    row |= {f"student_{metric}": [run[metric] for run in alone] for metric in METRICS}
                    row |= {key: [run[key] for run in runs] for key in (*METRICS, *COSTS)}
                    row |= {"seeds": list(range(1, self.seeds + 1)), "config": self._arguments(name)}
                    content["rows"] = [*(old for old in content["rows"] if not _same(old, row)), row]
                    self.results.parent.mkdir(parents=True, exist_ok=True)
                    write_json(self.results, content)
        return content

    @property
    def schedule(self) -> str:
        """The schedule as tables show it."""
        solver = load_config(self._files(f"student_{self.pairs[0].split('_')[1]}"), self.opts).SOLVER
        return f"{solver.MAX_ITER:,} iterations of {solver.IMS_PER_BATCH} images"

    def _check(self) -> None:
        for option, values, known in (("--pairs", self.pairs, PAIRS), ("--methods", self.methods, METHODS)):
            for value in values:
                one_of(option, value, list(known))
        for option, count, least in (("--seeds", self.seeds, 1), ("--num-gpus", self.num_gpus, 0)):
            if count < least:
                raise SetupError(f"{option} is {count}; give {least} or more.")
        for key in ("SEED", "OUTPUT_DIR"):
            if key in self.opts[::2]:
                raise SetupError(f"{key}: {'--seeds' if key == 'SEED' else '--output-dir'} sets it; leave it out.")
        for name in self._names():
            load_config(self._files(name), self.opts)

    def _names(self) -> Iterator[str]:
        """The names of all runs' configurations."""
        for pair in self.pairs:
            yield f"student_{pair.split('_')[1]}"
            yield from (f"{method}_{pair}" for method in self.methods)

    def _files(self, name: str) -> list[str]:
        return [f"coco/{name}.yaml", *([self.start] if self.start else [])]

    def _arguments(self, name: str) -> str:
        """What follows --config-file in the command that trains it."""
        return " ".join([*self._files(name), *self.opts])

    def _record(self, command: str) -> dict[str, Any]:
        """The content of the results file without new rows."""
        old, schedule = read_json(self.results), self.schedule
        if self.results.is_file() and old.get("schedule") != schedule:
            raise SetupError(
                f"--results {str(self.results)!r} is of the schedule {old.get('schedule')!r}, these runs have "
                f"{schedule!r}. Move the file or give another name."
            )
        self._refuse_other_runs(old.get("rows", []))
        machine = hardware("cuda" if torch.cuda.is_available() else "cpu") | {"runs_at_a_time": 1}
        facts = {"benchmark": BENCHMARK, "source": "ours", "schedule": schedule, "rows": old.get("rows", [])}
        return {**facts, "hardware": machine, "versions": versions(), "command": command}

    def _refuse_other_runs(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raises ``SetupError`` if a row of the results file would be replaced by one of other settings."""
        ours = {(*PAIRS[pair], title(method)): f"{method}_{pair}" for pair in self.pairs for method in self.methods}
        for row in rows:
            name = ours.get((row["teacher"], row["student"], row["method"]))
            if name is not None and row["config"] != self._arguments(name):
                raise SetupError(
                    f"--results {str(self.results)!r} has the row {row['config']!r}, this would be "
                    f"{self._arguments(name)!r}. Give another name."
                )

    def _runs(self, name: str) -> list[dict[str, Any]]:
        return [self._train(name, seed) for seed in range(1, self.seeds + 1)]

    def _train(self, name: str, seed: int) -> dict[str, Any]:
        folder = self.output_dir / name / f"seed{seed}"
        overrides = [*self.opts, "OUTPUT_DIR", str(folder), "SEED", str(seed)]
        files = self._files(name)
        recipe = {"config": load_config(files, overrides).dump(), "versions": versions()}

        def command(resume: bool) -> list[str]:
            line = [sys.executable, "-m", "kd_det", "train", "--config-file", *files]
            line += ["--num-gpus", str(self.num_gpus), *(["--resume"] if resume else [])]
            return [*line, *overrides]

        def collect() -> dict[str, Any]:
            metrics = read_metrics(folder / "metrics.json")
            return {**average_precision(metrics), **cost(metrics)}

        return run_step(folder, recipe, WEIGHTS, command, collect)


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(old.get(key) == new[key] for key in ("teacher", "student", "method"))


def chosen(given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """What an option names, each once; all without the option."""
    return tuple(dict.fromkeys(given if given is not None else known))
