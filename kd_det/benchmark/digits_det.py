"""Trains a teacher and its students on the digits scenes, and reports them side by side.

The teacher and both warmed-up backbones are made once and serve all seeds, as a model zoo's would; a seed
gives a student its initial head and the order of its images, the same in every arm. Each arm is a run of
``tools/train_net.py``.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_det.benchmark import environment
from kd_det.benchmark.methods import METHODS, TITLES
from kd_det.benchmark.metrics import average_precision, cost, read_metrics, weights_mib
from kd_det.benchmark.pictures import draw_pictures
from kd_det.benchmark.runs import file_digest, read_json, run_step, write_json
from kd_det.benchmark.schedules import SCHEDULES, Schedule
from kd_det.benchmark.table import NOTES, make_table
from kd_det.config import load_config
from kd_det.data import make_digits_det
from kd_det.data.digits_scenes import NAME
from kd_det.errors import did_you_mean

CONFIGS = Path("configs/digits_det")
ARMS = {"student": "student alone"} | {name: f"student + {title}" for name, title in TITLES.items()}
TEACHER, STUDENT = "R18-FPN-64", "quarter-width R50-FPN-32"
MEASURED = ("AP", "best_AP", "seconds_per_iteration", "memory_mib")
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
    """

    output_dir: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    schedule: str
    device: str

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
        results: dict[str, list[dict[str, Any]]] = {"teacher": [teacher]}
        for arm in self.arms:
            weights = {"MODEL.WEIGHTS": student_start}
            if arm != "student":
                weights["KD.TEACHER.WEIGHTS"] = teacher_weights
            results[ARMS[arm]] = [
                self._train(arm, seed, self.lengths.student, weights) for seed in self.seeds
            ]
        self._report(results, command)

    def folder(self, step: str, seed: int) -> Path:
        """The folder of an arm's run."""
        return self.output_dir / step / f"seed{seed}"

    def _warm_up(self, network: str, iterations: int) -> Path:
        folder = self.output_dir / f"{network}_warm_up"
        config, output = str(CONFIGS / f"{network}.yaml"), folder / "backbone.pth"
        options = ["--iterations", str(iterations), "--max-lr", str(WARM_UP_LR[network])]
        command = [sys.executable, "tools/warm_up_backbone.py", "--config-file", config]
        command += ["--output", str(output), *options, "MODEL.DEVICE", self.device]
        cfg = load_config(config, ["MODEL.DEVICE", self.device])
        recipe = {"options": options, "config": cfg.dump(), "versions": environment.versions()}
        run_step(folder, recipe, output.name, lambda resume: command, dict)
        return output

    def _train(self, arm: str, seed: int, iterations: int, weights: dict[str, Path]) -> dict[str, Any]:
        folder = self.folder(arm, seed)
        config = str(CONFIGS / f"{arm}.yaml")
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
            recipe["teacher"] = load_config(str(CONFIGS / "teacher.yaml")).dump()

        def command(resume: bool) -> list[str]:
            flags = ["--resume"] if resume else []
            return [sys.executable, "tools/train_net.py", "--config-file", config, *flags, *overrides]

        def collect() -> dict[str, Any]:
            metrics = read_metrics(folder / "metrics.json")
            weights = {"weights_mib": weights_mib(folder / WEIGHTS)}
            return {**average_precision(metrics), **cost(metrics), **weights, "seed": seed}

        return run_step(folder, recipe, WEIGHTS, command, collect)

    def _report(self, results: dict[str, list[dict[str, Any]]], command: str) -> None:
        table = make_table(results)
        hardware = environment.hardware(self.device)
        versions = environment.versions()
        lengths = asdict(self.lengths)
        seeds = f"seeds {list(self.seeds)}; one teacher (seed {TEACHER_SEED}) and one warm-up each for all."
        where = f"{hardware['name']}, {hardware['cpu_cores']} cores, {hardware['torch_threads']} threads"
        text = "\n\n".join(
            [
                "# Digits scenes",
                table,
                NOTES,
                f"Schedule {self.schedule!r} (iterations: {lengths}); {seeds}",
                f"Measured on {where}; " + ", ".join(f"{name} {number}" for name, number in versions.items()),
                f"`{command}`",
            ]
        )
        (self.output_dir / "table.md").write_text(text + "\n")
        record = {"benchmark": "Digits scenes", "source": "ours", "rows": self._rows(results)}
        record |= {"schedule": f"{self.schedule}: {self.lengths.student} iterations", "lengths": lengths}
        record |= {"hardware": hardware, "versions": versions, "command": command, "results": results}
        write_json(self.output_dir / "results.json", record)
        print("\n" + text + "\n", flush=True)
        runs = {"teacher": self.folder("teacher", TEACHER_SEED)}
        runs |= {ARMS[arm]: self.folder(arm, self.seeds[0]) for arm in self.arms}
        # A row of detections is readable with few columns: one method stands for all.
        distilled = [arm for arm in self.arms if arm != "student"]
        method = ["dkd"] if "dkd" in distilled else distilled[:1]
        shown = ["teacher", *(ARMS[arm] for arm in ("student", *method))]
        titles = {title: arm for arm, title in {"teacher": "teacher", **ARMS}.items()}
        models = {title: (CONFIGS / f"{titles[title]}.yaml", runs[title]) for title in shown}
        for path in draw_pictures(self.output_dir, results, runs, models, self.device):
            print(f"wrote {path}", flush=True)


    def _rows(self, results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """For the model zoo: see ``kd_det.benchmark.model_zoo``."""
        alone, teacher = ([run["AP"] for run in results[title]] for title in (ARMS["student"], "teacher"))
        return [
            {
                "teacher": TEACHER, "student": STUDENT, "method": TITLES[arm], "config": str(CONFIGS / f"{arm}.yaml"),
                "teacher_AP": teacher, "student_AP": alone, "seeds": list(self.seeds),
                **{key: [run[key] for run in results[ARMS[arm]]] for key in MEASURED},
            }
            for arm in self.arms if arm != "student"
        ]  # fmt: skip


def datasets_root() -> str:
    """Where Detectron2 looks for data sets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def seeds_of(count: int) -> tuple[int, ...]:
    """The seeds 1 to ``count``.

    Raises:
        ValueError: the count is below 1.
    """
    if count < 1:
        raise ValueError(f"--seeds is {count}; give 1 or more")
    return tuple(range(1, count + 1))


def arms_of(methods: Sequence[str]) -> tuple[str, ...]:
    """The student alone, and under the teacher by each method.

    Raises:
        ValueError: there is no such method.
    """
    for name in methods:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise ValueError(f"--methods: there is no {name!r}.{did_you_mean(name, METHODS)} Known: {known}")
    return ("student", *dict.fromkeys(methods))
