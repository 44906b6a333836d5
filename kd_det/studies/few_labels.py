"""``kd-det study labels``: a student on a few labels, with a teacher's knowledge of the other images, on all labels.

The arms have the same schedule, start and seeds. Knowledge is stored once, for the labelled and the unlabelled images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_det.common import environment
from kd_det.common.errors import SetupError, below_one, one_of, positive, whole_number
from kd_det.common.files import read_json, write_json
from kd_det.data import make_digits_det
from kd_det.data.digits_scenes import annotation_file, image_root
from kd_det.studies.digits_det import SCHEDULES, TEACHER_SEED
from kd_det.studies.digits_runs import (
    TEACHER_WEIGHTS,
    WEIGHTS,
    Runs,
    Training,
    config_of,
    datasets_root,
    last_result,
    row_of,
    scenes_recipe,
    seeds_of,
    training,
)
from kd_det.studies.methods import STUDENT, TEACHER
from kd_det.studies.scenes import label_few, overrides_of

KIND = "digits_few_labels"
METHOD = "stored_dkd"  # of the arms with a teacher
FEW, FEW_STORED, UNLABELED, ALL = "few", "few_stored", "unlabeled", "all"
TITLES = {
    FEW: "few labels",
    FEW_STORED: "few labels, stored DKD",
    UNLABELED: "few labels, stored DKD, the other images unlabelled",
    ALL: "all labels",
}


@dataclass(frozen=True)
class FewLabelsStudy:
    """What to run.

    Attributes:
        output_dir: the folder of the runs' folders.
        results: the results file.
        seeds: runs of each arm, SEED 1, 2, ...
        jobs: how many trainings run at a time.
        device: "cpu" or "cuda".
        schedule: a name in ``SCHEDULES``.
        fraction: share of the training images that keep their labels.
        teacher_labels: what the teacher is trained on, "all" or "few".
        unlabeled_opts: KEY, VALUE, ... of the arm with unlabelled images.
    """

    output_dir: Path
    results: Path
    seeds: int
    jobs: int
    device: str
    schedule: str = "demo"
    fraction: float = 0.1
    teacher_labels: str = ALL
    unlabeled_opts: tuple[str, ...] = ()

    def run(self, command: str) -> dict[str, Any]:
        """Runs what is not finished. Writes the results file at the end; returns its content.

        Args:
            command: the command line, for the record.

        Raises:
            SetupError: a setting is not valid.
            CommandError: a training failed. The same command goes on there.
        """
        self._check()
        root = datasets_root()
        make_digits_det(root)
        whole, images = annotation_file(root, "train"), image_root(root, "train")
        few, rest = label_few(self.output_dir / "scenes", whole, images, self.fraction)
        on_few = overrides_of([few], train=[few])
        with_rest = overrides_of([few, rest], train=[few], UNLABELED=[rest])
        lengths = SCHEDULES[self.schedule]
        runs = Runs(self.output_dir, self.device, self.jobs, [scenes_recipe(root), self.fraction])
        starts = {
            TEACHER: runs.warm_up(TEACHER, lengths.teacher_warm_up),
            STUDENT: runs.warm_up(STUDENT, lengths.student_warm_up),
        }
        folder = f"{TEACHER}_{self.teacher_labels}/seed{TEACHER_SEED}"
        overrides = (*(on_few if self.teacher_labels == FEW else ()), *lengths.overrides(lengths.teacher))
        of_teacher = Training(folder, TEACHER_SEED, config_of(TEACHER), overrides, {"MODEL.WEIGHTS": starts[TEACHER]})
        teacher = runs.train(of_teacher, last_result)
        weights = self.output_dir / folder / WEIGHTS
        knowledge = runs.store(weights, with_rest)
        arms = {
            FEW: (STUDENT, on_few),
            FEW_STORED: (METHOD, on_few),
            UNLABELED: (METHOD, (*with_rest, *self.unlabeled_opts)),
            ALL: (STUDENT, ()),
        }
        seeds, schedule = seeds_of(self.seeds), lengths.overrides(lengths.student)
        chosen = [(arm, seed) for seed in seeds for arm in arms]
        trainings = []
        for arm, seed in chosen:
            method, data = arms[arm]
            name, settings = f"{arm}/seed{seed}", (*schedule, *data)
            trainings.append(training(method, seed, name, settings, starts[STUDENT], weights, knowledge))
        outcomes = dict(zip(chosen, runs.train_all(trainings, last_result), strict=True))
        labelled = len(read_json(few.json_file)["images"])
        total = len(read_json(whole)["images"])
        content: dict[str, Any] = {"kind": KIND, "source": "ours"}
        content |= {"schedule": f"{self.schedule}: {lengths.student} iterations"}
        content |= {"fraction": self.fraction, "labelled_images": labelled, "images": total, "lengths": asdict(lengths)}
        content |= {"teacher_labels": self.teacher_labels, "teacher_AP": teacher["AP"]}
        content |= {"rows": [row_of(arm, TITLES[arm], [outcomes[arm, seed] for seed in seeds]) for arm in arms]}
        content |= {"seeds": list(seeds), "unlabeled_opts": self.unlabeled_opts, "hardware": runs.hardware}
        content |= {"versions": environment.versions(), "command": command}
        self.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.results, content)
        return content

    def _check(self) -> None:
        below_one("--fraction", positive("--fraction", self.fraction))
        for option, count in (("--seeds", self.seeds), ("--jobs", self.jobs)):
            whole_number(option, count, 1)
        one_of("--schedule", self.schedule, SCHEDULES)
        one_of("--teacher-labels", self.teacher_labels, (ALL, FEW))
        for key in ("SEED", "OUTPUT_DIR", TEACHER_WEIGHTS):
            if key in self.unlabeled_opts[::2]:
                raise SetupError(f"{key}: the study sets it; leave it out.")
