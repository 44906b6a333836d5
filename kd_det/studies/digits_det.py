"""Trains a teacher and its students on the digits scenes, and reports them side by side.

The teacher and both warmed-up backbones are made once and serve all seeds, as a model zoo's would; a seed
gives a student its initial head and the order of its images, the same in every arm. Each arm is a run of
``kd-det train``.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_det.common import environment
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.files import write_json
from kd_det.common.processes import forwarding_sigterm
from kd_det.common.run_steps import file_digest, read_json, run_step
from kd_det.common.tables import NOTES, make_table
from kd_det.config import load_config
from kd_det.data import make_digits_det
from kd_det.data.digits_scenes import NAME
from kd_det.studies.methods import METHODS, TITLES
from kd_det.studies.metrics import average_precision, cost, read_metrics, weights_mib
from kd_det.studies.pictures import draw_pictures
from kd_det.studies.schedules import SCHEDULES, Schedule

CONFIGS = "digits_det"  # the folder of the shipped configurations
ARMS = {"student": "student alone"} | {name: f"student + {title}" for name, title in TITLES.items()}
TEACHER, STUDENT = "R18-FPN-64", "quarter-width R50-FPN-32"
MEASURED = ("AP", "best_AP", "memory_mib")
TIMED = ("seconds_per_iteration",)
TEACHER_SEED = 1
WEIGHTS = "model_final.pth"  # what Detectron2 calls the last checkpoint
WARM_UP_LR = {"teacher": 0.001, "student": 0.003}


@dataclass(frozen=True)
class Benchmark:
    """What to run.

    Attributes:
        output_dir: where everything goes, each step in its own folder.
        arms: which of ``ARMS`` to train.
        seeds: one run of every arm per seed.
        schedule: a name in ``SCHEDULES``.
        device: "cpu" or "cuda".
        jobs: how many student runs at a time; the cores are shared out among them.
    """

    output_dir: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    schedule: str
    device: str
    jobs: int = 1

    @property
    def threads(self) -> int | None:
        """Of each of several runs at a time; None for one: PyTorch's own choice."""
        return None if self.jobs == 1 else max(1, (os.cpu_count() or 1) // self.jobs)

    @property
    def lengths(self) -> Schedule:
        """The schedule itself."""
        return SCHEDULES[self.schedule]

    def run(self, command: str) -> None:
        """Run what is not there yet; print and write the table, and draw the pictures of the first seed.

        Args:
            command: the command line, for the record.
        """
        make_digits_det(datasets_root())
        teacher_start = self._warm_up("teacher", self.lengths.teacher_warm_up)
        student_start = self._warm_up("student", self.lengths.student_warm_up)
        teacher = self._train("teacher", TEACHER_SEED, self.lengths.teacher, {"MODEL.WEIGHTS": teacher_start})
        teacher_weights = self.folder("teacher", TEACHER_SEED) / WEIGHTS
        self._report({"teacher": [teacher], **self._train_arms(student_start, teacher_weights)}, command)

    def _train_arms(self, start: Path, teacher_weights: Path) -> dict[str, list[dict[str, Any]]]:
        runs = [(arm, seed) for arm in self.arms for seed in self.seeds]

        def train(run: tuple[str, int]) -> dict[str, Any]:
            arm, seed = run
            weights = {"MODEL.WEIGHTS": start}
            if arm != "student":
                weights["KD.TEACHER.WEIGHTS"] = teacher_weights
            return self._train(arm, seed, self.lengths.student, weights, self.threads)

        with forwarding_sigterm(), ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(train, run) for run in runs]
            try:
                outcomes = dict(zip(runs, (future.result() for future in futures), strict=True))
            except BaseException:  # Ctrl-C too: what has not begun must not begin
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {ARMS[arm]: [outcomes[arm, seed] for seed in self.seeds] for arm in self.arms}

    def folder(self, step: str, seed: int) -> Path:
        """The folder of an arm's run."""
        return self.output_dir / step / f"seed{seed}"

    def _warm_up(self, network: str, iterations: int) -> Path:
        folder = self.output_dir / f"{network}_warm_up"
        config, output = f"{CONFIGS}/{network}.yaml", folder / "backbone.pth"
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
        config = f"{CONFIGS}/{arm}.yaml"
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
        if arm not in ("teacher", "student"):
            recipe["teacher"] = load_config(f"{CONFIGS}/teacher.yaml").dump()

        def command(resume: bool) -> list[str]:
            flags = ["--resume"] if resume else []
            return [sys.executable, "-m", "kd_det", "train", "--config-file", config, *flags, *overrides]

        def collect() -> dict[str, Any]:
            metrics = read_metrics(folder / "metrics.json")
            weights = {"weights_mib": weights_mib(folder / WEIGHTS)}
            return {**average_precision(metrics), **cost(metrics), **weights, "seed": seed}

        return run_step(folder, recipe, WEIGHTS, command, collect, threads)

    def _report(self, results: dict[str, list[dict[str, Any]]], command: str) -> None:
        hardware = environment.hardware(self.device) | {"runs_at_a_time": self.jobs}
        if self.threads:
            hardware["torch_threads"] = self.threads
        lengths, versions = asdict(self.lengths), environment.versions()
        software = ", ".join(f"{name} {number}" for name, number in versions.items())
        seeds = f"seeds {list(self.seeds)}; one teacher (seed {TEACHER_SEED}) and one warm-up each for all."
        parts = [
            "# Digits scenes",
            make_table(results, timed=self.jobs == 1),
            NOTES,
            f"Schedule {self.schedule!r} (iterations: {lengths}); {seeds}",
            f"Measured on {environment.described(hardware)}; {software}",
            f"`{command}`",
        ]
        text = "\n\n".join(parts)
        (self.output_dir / "table.md").write_text(text + "\n")
        record = {"benchmark": "Digits scenes", "source": "ours", "rows": self._rows(results)}
        record |= {"schedule": f"{self.schedule}: {self.lengths.student} iterations", "lengths": lengths}
        record |= {"hardware": hardware, "versions": versions, "command": command, "results": results}
        write_json(self.output_dir / "results.json", record)
        print("\n" + text + "\n", flush=True)
        self._draw(results)

    def _draw(self, results: dict[str, list[dict[str, Any]]]) -> None:
        arms = {"teacher": "teacher"} | {ARMS[arm]: arm for arm in self.arms}
        seeds = dict.fromkeys(arms, self.seeds[0]) | {"teacher": TEACHER_SEED}
        runs = {title: self.folder(arm, seeds[title]) for title, arm in arms.items()}
        # A row of detections is readable with few columns: one method stands for all.
        methods = [arm for arm in self.arms if arm != "student"]
        shown = ["teacher", "student", *(["dkd"] if "dkd" in methods else methods[:1])]
        models = {title: (f"{CONFIGS}/{arm}.yaml", runs[title]) for title, arm in arms.items() if arm in shown}
        for path in draw_pictures(self.output_dir, results, runs, models, self.device):
            print(f"wrote {path}", flush=True)

    def _rows(self, results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """For the model zoo: see ``kd_det.studies.model_zoo``. Runs that share the cores tell nothing of time."""
        measured = MEASURED if self.jobs > 1 else (*MEASURED, *TIMED)
        alone, teacher = ([run["AP"] for run in results[title]] for title in (ARMS["student"], "teacher"))
        return [
            {
                "teacher": TEACHER, "student": STUDENT, "method": TITLES[arm],
                "config": f"configs/{CONFIGS}/{arm}.yaml",
                "teacher_AP": teacher, "student_AP": alone, "seeds": list(self.seeds),
                **{key: [run[key] for run in results[ARMS[arm]]] for key in measured},
            }
            for arm in self.arms if arm != "student"
        ]  # fmt: skip


def datasets_root() -> str:
    """Where Detectron2 looks for data sets."""
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
    """The student alone, and under the teacher by each method.

    Raises:
        SetupError: there is no such method.
    """
    for name in methods:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise SetupError(f"--methods: there is no {name!r}.{did_you_mean(name, METHODS)} Known: {known}.")
    return ("student", *dict.fromkeys(methods))
