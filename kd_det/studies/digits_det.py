"""Trains a teacher and its students on the digits scenes, and compares them in a table and figures.

The teacher and both pretrained backbones are trained once and used for all seeds, as those of a model zoo would be. A
seed determines a student's initial head and the order of its images, which are the same in every arm. Each arm is a
command of its own, which trains as ``kd-det train`` does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_det.common import environment
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.files import read_json, write_atomically, write_json
from kd_det.common.processes import forwarding_sigterm, run_side_by_side, threads_of_each
from kd_det.common.run_steps import file_digest, run_step
from kd_det.config import load_config
from kd_det.data import make_digits_det
from kd_det.data.digits_scenes import NAME
from kd_det.studies.methods import METHODS, STUDENT, TEACHER, arm_title, title
from kd_det.studies.metrics import NOTES, average_precision, cost, metrics_table, read_metrics, weights_mib
from kd_det.studies.pictures import draw_pictures

CONFIGS = "digits_det"  # the folder of the shipped configurations
NETWORKS = {TEACHER: "R18-FPN-64", STUDENT: "quarter-width R50-FPN-32"}
MEASURED = ("AP", "best_AP", "memory_mib")
TIMED = ("seconds_per_iteration",)
TEACHER_SEED = 1
WEIGHTS = "model_final.pth"  # Detectron2's name for the last checkpoint
WARM_UP_LR = {TEACHER: 0.001, STUDENT: 0.003}


@dataclass(frozen=True)
class Schedule:
    """Lengths in iterations, the same for every student arm.

    Attributes:
        teacher_warm_up: AdamW steps on digit classification for the teacher's backbone.
        student_warm_up: the same for the student's.
        teacher: SGD steps of the teacher.
        student: SGD steps of each student.
        evaluations: how often an arm is evaluated during training, the end included.
    """

    teacher_warm_up: int
    student_warm_up: int
    teacher: int
    student: int
    evaluations: int

    def overrides(self, iterations: int) -> list[str]:
        """Configuration overrides for an arm of that many iterations."""
        period = -(-iterations // self.evaluations)
        return ["SOLVER.MAX_ITER", str(iterations), "TEST.EVAL_PERIOD", str(period)]


SCHEDULES = {
    "demo": Schedule(teacher_warm_up=120, student_warm_up=300, teacher=200, student=200, evaluations=2),
    "long": Schedule(teacher_warm_up=300, student_warm_up=800, teacher=1000, student=1000, evaluations=5),
}


@dataclass(frozen=True)
class Benchmark:
    """What to run.

    Attributes:
        output_dir: the folder for everything; each step has its own folder in it.
        arms: what to train: of ``arms_of``.
        seeds: one run of every arm for each seed.
        schedule: a name in ``SCHEDULES``.
        device: "cpu" or "cuda".
        jobs: how many students train at a time; they share the cores equally.
    """

    output_dir: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    schedule: str
    device: str
    jobs: int = 1

    @property
    def threads(self) -> int | None:
        """CPU threads of each student's run; None: PyTorch's own choice."""
        return threads_of_each(self.jobs)

    @property
    def lengths(self) -> Schedule:
        """The schedule with that name."""
        return SCHEDULES[self.schedule]

    def run(self, command: str) -> None:
        """Runs the steps that are not finished. Prints and writes the table; draws the figures of the first seed.

        Args:
            command: the command line, for the record.

        Raises:
            CommandError: a step failed.
        """
        make_digits_det(datasets_root())
        teacher_start = self._warm_up(TEACHER, self.lengths.teacher_warm_up)
        student_start = self._warm_up(STUDENT, self.lengths.student_warm_up)
        teacher = self._train(TEACHER, TEACHER_SEED, self.lengths.teacher, {"MODEL.WEIGHTS": teacher_start})
        teacher_weights = self.folder(TEACHER, TEACHER_SEED) / WEIGHTS
        self._report({TEACHER: [teacher], **self._train_arms(student_start, teacher_weights)}, command)

    def _train_arms(self, start: Path, teacher_weights: Path) -> dict[str, list[dict[str, Any]]]:
        runs = [(arm, seed) for arm in self.arms for seed in self.seeds]

        def train(run: tuple[str, int]) -> dict[str, Any]:
            arm, seed = run
            weights = {"MODEL.WEIGHTS": start}
            if arm != STUDENT:
                weights["KD.TEACHER.WEIGHTS"] = teacher_weights
            return self._train(arm, seed, self.lengths.student, weights, self.threads)

        with forwarding_sigterm():
            outcomes = dict(zip(runs, run_side_by_side(runs, train, self.jobs), strict=True))
        return {arm_title(arm): [outcomes[arm, seed] for seed in self.seeds] for arm in self.arms}

    def folder(self, step: str, seed: int) -> Path:
        """The folder of an arm's run."""
        return self.output_dir / step / f"seed{seed}"

    def _warm_up(self, network: str, iterations: int) -> Path:
        folder = self.output_dir / f"{network}_warm_up"
        config, output = config_of(network), folder / "backbone.pth"
        options = ["--iterations", str(iterations), "--max-lr", str(WARM_UP_LR[network])]
        command = [sys.executable, "-m", "kd_det.studies.warm_up", "--config-file", config]
        command += ["--output", str(output), *options, "MODEL.DEVICE", self.device]
        cfg = load_config(config, ["MODEL.DEVICE", self.device])
        recipe = {"options": options, "config": cfg.dump(), "versions": environment.versions()}
        run_step(folder, recipe, output.name, lambda resume: command, dict)
        return output

    def _train(
        self, arm: str, seed: int, iterations: int, weights: dict[str, Path], threads: int | None = None
    ) -> dict[str, Any]:
        folder = self.folder(arm, seed)
        config = config_of(arm)
        overrides = ["OUTPUT_DIR", str(folder), "SEED", str(seed), "MODEL.DEVICE", self.device]
        overrides += self.lengths.overrides(iterations)
        for key, path in weights.items():
            overrides += [key, str(path)]
        recipe = {
            "config": load_config(config, overrides).dump(),
            "inputs": {key: file_digest(path) for key, path in weights.items()},
            "data": read_json(Path(datasets_root()) / NAME / "manifest.json")["recipe"],
            "versions": environment.versions(),
        }
        if arm not in (TEACHER, STUDENT):
            recipe["teacher"] = load_config(config_of(TEACHER)).dump()

        def command(resume: bool) -> list[str]:
            flags = ["--resume"] if resume else []
            return [sys.executable, "-m", "kd_det", "train", "--config-file", config, *flags, *overrides]

        def collect() -> dict[str, Any]:
            metrics = read_metrics(folder / "metrics.json")
            size = {"weights_mib": weights_mib(folder / WEIGHTS)}
            return {**average_precision(metrics), **cost(metrics), **size, "seed": seed}

        return run_step(folder, recipe, WEIGHTS, command, collect, threads)

    def _report(self, results: dict[str, list[dict[str, Any]]], command: str) -> None:
        hardware = environment.hardware(self.device) | {"runs_at_a_time": self.jobs}
        if self.threads:
            hardware["torch_threads"] = self.threads
        lengths, versions = asdict(self.lengths), environment.versions()
        seeds = f"seeds {list(self.seeds)}; all use one teacher (seed {TEACHER_SEED}) and one warm-up of each backbone."
        parts = [
            "# Digits scenes",
            metrics_table(results, timed=self.jobs == 1),
            NOTES,
            f"Schedule {self.schedule!r} (iterations: {lengths}); {seeds}",
            f"Measured on {environment.described(hardware, versions)}",
            f"`{command}`",
        ]
        text = "\n\n".join(parts)
        write_atomically(self.output_dir / "table.md", (text + "\n").encode())
        record: dict[str, Any] = {"benchmark": "Digits scenes", "source": "ours", "rows": self._rows(results)}
        record |= {"schedule": f"{self.schedule}: {self.lengths.student} iterations", "lengths": lengths}
        record |= {"hardware": hardware, "versions": versions, "command": command, "results": results}
        write_json(self.output_dir / "results.json", record)
        print("\n" + text + "\n", flush=True)
        self._draw(results)

    def _draw(self, results: dict[str, list[dict[str, Any]]]) -> None:
        seeds = dict.fromkeys(self.arms, self.seeds[0]) | {TEACHER: TEACHER_SEED}
        arms = (TEACHER, *self.arms)
        runs = {arm_title(arm): self.folder(arm, seeds[arm]) for arm in arms}
        # A row of detections is readable only with few columns, so one method represents all.
        methods = [arm for arm in self.arms if arm != STUDENT]
        shown = [TEACHER, STUDENT, *(["dkd"] if "dkd" in methods else methods[:1])]
        models = {arm_title(arm): (config_of(arm), self.folder(arm, seeds[arm])) for arm in arms if arm in shown}
        for path in draw_pictures(self.output_dir, results, runs, models, self.device):
            print(f"wrote {path}", flush=True)

    def _rows(self, results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The model zoo's rows; see ``kd_det.studies.model_zoo``. Runs that share the cores have no times in them."""
        measured = MEASURED if self.jobs > 1 else (*MEASURED, *TIMED)
        alone, teacher = ([run["AP"] for run in results[arm_title(arm)]] for arm in (STUDENT, TEACHER))
        return [
            {
                **NETWORKS, "method": title(arm), "config": config_of(arm),
                "teacher_AP": teacher, "student_AP": alone, "seeds": list(self.seeds),
                **{key: [run[key] for run in results[arm_title(arm)]] for key in measured},
            }
            for arm in self.arms if arm != STUDENT
        ]  # fmt: skip


def config_of(arm: str) -> str:
    """The name of an arm's shipped configuration."""
    return f"{CONFIGS}/{arm}.yaml"


def datasets_root() -> str:
    """The folder in which Detectron2 looks for data sets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def seeds_of(count: int) -> tuple[int, ...]:
    """The seeds 1 to ``count``.

    Raises:
        SetupError: the count is below 1.
    """
    if count < 1:
        raise SetupError(f"--seeds is {count}; give 1 or more.")
    return tuple(range(1, count + 1))


def arms_of(methods: Sequence[str]) -> tuple[str, ...]:
    """The arms to train: the student alone, and the student with each method.

    Raises:
        SetupError: a method is not listed in ``METHODS``.
    """
    for name in methods:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise SetupError(f"--methods: there is no {name!r}.{did_you_mean(name, METHODS)} Known: {known}.")
    return (STUDENT, *dict.fromkeys(methods))
