"""Trains a teacher and its students on the digits scenes, and compares them in a table and figures.

The teacher and both pretrained backbones are trained once and used for all seeds, as those of a model zoo would be. A
seed determines a student's initial head and the order of its images, which are the same in every arm. Each arm is a
command of its own, which trains as ``kd-det train`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_det.common import environment
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.files import write_atomically, write_json
from kd_det.data import make_digits_det
from kd_det.studies.digits_runs import (
    WEIGHTS,
    Runs,
    Training,
    arguments_of,
    config_of,
    datasets_root,
    last_result,
    scenes_recipe,
    training,
)
from kd_det.studies.methods import STUDENT, TEACHER, all_methods, arm_title, recipe_of, title
from kd_det.studies.metrics import NOTES, metrics_table
from kd_det.studies.pictures import draw_pictures

NETWORKS = {TEACHER: "R18-FPN-64", STUDENT: "quarter-width R50-FPN-32"}
MEASURED = ("AP", "best_AP", "memory_mib")
TIMED = ("seconds_per_iteration",)
TEACHER_SEED = 1


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
    def lengths(self) -> Schedule:
        """The schedule with that name."""
        return SCHEDULES[self.schedule]

    @property
    def caution(self) -> str:
        """What a reader of the table must know first: how many seeds, and what the schedule favours."""
        seeds = "One seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        noise = ": differences of some AP are noise" if len(self.seeds) == 1 else ""
        favours = ", which favours whatever learns faster, and so distillation" if self.schedule == "demo" else ""
        length = "short" if self.schedule == "demo" else self.schedule
        return f"**{seeds}, {length} schedule**{noise}{favours}."

    def run(self, command: str) -> None:
        """Runs the steps that are not finished. Prints and writes the table; draws the figures of the first seed.

        Args:
            command: the command line, for the record.

        Raises:
            CommandError: a step failed.
        """
        make_digits_det(datasets_root())
        runs = Runs(self.output_dir, self.device, self.jobs, scenes_recipe(datasets_root()))
        lengths = self.lengths
        teacher_start = runs.warm_up(TEACHER, lengths.teacher_warm_up)
        student_start = runs.warm_up(STUDENT, lengths.student_warm_up)
        schedule = tuple(lengths.overrides(lengths.teacher))
        inputs = {"MODEL.WEIGHTS": teacher_start}
        folder = self._folder(TEACHER, TEACHER_SEED)
        of_teacher = Training(folder, TEACHER_SEED, config_of(TEACHER), schedule, inputs)
        teacher = runs.train(of_teacher, last_result)
        weights = self.output_dir / folder / WEIGHTS
        stored = any(recipe_of(arm).stored for arm in self.arms if arm != STUDENT)
        knowledge = runs.store(weights) if stored else None
        chosen = [(arm, seed) for arm in self.arms for seed in self.seeds]
        schedule = tuple(lengths.overrides(lengths.student))
        trainings = [
            training(arm, seed, self._folder(arm, seed), schedule, student_start, weights, knowledge)
            for arm, seed in chosen
        ]
        outcomes = dict(zip(chosen, runs.train_all(trainings, last_result), strict=True))
        of_arms = {arm_title(arm): [outcomes[arm, seed] for seed in self.seeds] for arm in self.arms}
        self._report({TEACHER: [teacher], **of_arms}, runs, command)

    def _folder(self, arm: str, seed: int) -> str:
        return f"{arm}/seed{seed}"

    def _report(self, results: dict[str, list[dict[str, Any]]], runs: Runs, command: str) -> None:
        hardware = runs.hardware
        lengths, versions = asdict(self.lengths), environment.versions()
        seeds = f"seeds {list(self.seeds)}; all use one teacher (seed {TEACHER_SEED}) and one warm-up of each backbone."
        parts = [
            "# Digits scenes",
            metrics_table(results, timed=self.jobs == 1),
            self.caution,
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
        runs = {arm_title(arm): self.output_dir / self._folder(arm, seeds[arm]) for arm in arms}
        # A row of detections is readable only with few columns, so one method represents all.
        methods = [arm for arm in self.arms if arm != STUDENT]
        shown = [TEACHER, STUDENT, *(["dkd"] if "dkd" in methods else methods[:1])]
        models = {arm_title(arm): (config_of(arm), runs[arm_title(arm)]) for arm in arms if arm in shown}
        for path in draw_pictures(self.output_dir, results, runs, models, self.device):
            print(f"wrote {path}", flush=True)

    def _rows(self, results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The model zoo's rows; see ``kd_det.studies.model_zoo``. Runs that share the cores have no times in them."""
        measured = MEASURED if self.jobs > 1 else (*MEASURED, *TIMED)
        alone, teacher = ([run["AP"] for run in results[arm_title(arm)]] for arm in (STUDENT, TEACHER))
        return [
            {
                **NETWORKS, "method": title(arm), "config": arguments_of(arm, self.output_dir / "knowledge"),
                "teacher_AP": teacher, "student_AP": alone, "seeds": list(self.seeds),
                **{key: [run[key] for run in results[arm_title(arm)]] for key in measured},
            }
            for arm in self.arms if arm != STUDENT
        ]  # fmt: skip


def arms_of(methods: Sequence[str]) -> tuple[str, ...]:
    """The arms to train: the student alone, and the student with each method.

    Raises:
        SetupError: a method is not listed in ``kd_det.studies.methods``.
    """
    known = all_methods()
    for name in methods:
        if name not in known:
            raise SetupError(f"--methods: there is no {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return (STUDENT, *dict.fromkeys(methods))
