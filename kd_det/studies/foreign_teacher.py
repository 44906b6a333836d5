"""``kd-det study foreign``: a detector of another library teaches through the file of its predictions.

The teacher is torchvision's; see ``kd_det.studies.torchvision_detector``. The arms have the same schedule, start and
seeds. No arm has the teacher itself.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_det.common import environment
from kd_det.common.errors import one_of, whole_number
from kd_det.common.files import read_json, write_json
from kd_det.common.run_steps import run_step
from kd_det.data import make_digits_det
from kd_det.data.digits_scenes import annotation_file, image_root
from kd_det.studies.digits_det import SCHEDULES
from kd_det.studies.digits_runs import (
    STORED,
    TEACHER_WEIGHTS,
    Runs,
    Training,
    config_of,
    datasets_root,
    last_result,
    row_of,
    scenes_recipe,
    seeds_of,
)
from kd_det.studies.methods import STUDENT
from kd_det.studies.torchvision_detector import RESULT, VECTORS, WINNERS

KIND = "digits_foreign_teacher"
ALONE, WINNERS_KD, VECTORS_KD, VECTORS_DKD = "student", "winners_kd", "vectors_kd", "vectors_dkd"
# Of each arm the configuration and the predictions.
ARMS = {
    ALONE: (STUDENT, None),
    WINNERS_KD: ("kd", WINNERS),
    VECTORS_KD: ("kd", VECTORS),
    VECTORS_DKD: ("dkd", VECTORS),
}
TITLES = {
    ALONE: "student alone",
    WINNERS_KD: "KD, detections with the winner's score",
    VECTORS_KD: "KD, detections and proposals with score vectors",
    VECTORS_DKD: "DKD, detections and proposals with score vectors",
}
NO_TEACHER = ("KD.TEACHER.CONFIG_FILE", "", TEACHER_WEIGHTS, "")


@dataclass(frozen=True)
class ForeignTeacherStudy:
    """What to run.

    Attributes:
        output_dir: the folder of the runs' folders.
        results: the results file.
        seeds: runs of each arm, SEED 1, 2, ...
        jobs: how many students train at a time.
        device: "cpu" or "cuda".
        schedule: a name in ``SCHEDULES``.
        teacher_iterations: of the detector.
    """

    output_dir: Path
    results: Path
    seeds: int
    jobs: int
    device: str
    schedule: str = "demo"
    teacher_iterations: int = 1500

    def run(self, command: str) -> dict[str, Any]:
        """Runs what is not finished, and writes the results file.

        Args:
            command: the command line, for the record.

        Returns:
            The content of the results file.

        Raises:
            SetupError: a setting is not valid.
            CommandError: a command failed. The same command goes on there.
        """
        options = {"--seeds": self.seeds, "--jobs": self.jobs, "--teacher-iterations": self.teacher_iterations}
        for option, count in options.items():
            whole_number(option, count, 1)
        lengths = SCHEDULES[one_of("--schedule", self.schedule, SCHEDULES)]
        make_digits_det(datasets_root())
        runs = Runs(self.output_dir, self.device, self.jobs, scenes_recipe(datasets_root()))
        teacher = self._detector(runs)
        knowledge = {name: self._knowledge(runs, name) for name in (WINNERS, VECTORS)}
        start = runs.warm_up(STUDENT, lengths.student_warm_up)
        schedule, seeds = tuple(lengths.overrides(lengths.student)), seeds_of(self.seeds)
        chosen = [(arm, seed) for seed in seeds for arm in ARMS]
        trainings = []
        for arm, seed in chosen:
            method, predictions = ARMS[arm]
            inputs = {"MODEL.WEIGHTS": start} | ({STORED: knowledge[predictions]} if predictions else {})
            overrides = (*schedule, *(NO_TEACHER if predictions else ()))
            trainings.append(Training(f"{arm}/seed{seed}", seed, config_of(method), overrides, inputs))
        outcomes = dict(zip(chosen, runs.train_all(trainings, last_result), strict=True))
        content: dict[str, Any] = {"kind": KIND, "source": "ours", "teacher_AP": teacher["AP"]}
        content |= {"schedule": f"{self.schedule}: {lengths.student} iterations", "lengths": asdict(lengths)}
        content |= {"teacher_iterations": self.teacher_iterations, "boxes_per_image": teacher["boxes_per_image"]}
        content |= {"rows": [row_of(arm, TITLES[arm], [outcomes[arm, seed] for seed in seeds]) for arm in ARMS]}
        content |= {"seeds": list(seeds), "hardware": runs.hardware, "versions": environment.versions()}
        content |= {"command": command}
        self.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.results, content)
        return content

    def _detector(self, runs: Runs) -> dict[str, Any]:
        """The detector's AP, and the mean number of boxes of an image in each of its files."""
        root, folder = datasets_root(), self.output_dir / "detector"
        options = ["--output", str(folder), "--iterations", str(self.teacher_iterations), "--device", self.device]
        for split in ("train", "val"):
            options += [f"--{split}", str(annotation_file(root, split)), str(image_root(root, split))]
        recipe = {"options": options, "data": runs.data, "versions": environment.versions()}
        command = [sys.executable, "-m", "kd_det.studies.torchvision_detector", *options]
        return run_step(folder, recipe, RESULT, lambda resume: command, lambda: read_json(folder / RESULT))

    def _knowledge(self, runs: Runs, predictions: str) -> Path:
        path = self.output_dir / "detector" / predictions
        return runs.import_predictions(path, f"knowledge_{path.stem}", config_of(STUDENT))
