"""``kd-det study converged``: distillation of a student that has been trained for long, beside longer training alone.

Teacher and student are first trained alone, in rounds that double the training, until a round gains little
(``kd_det.studies.rounds``). The student before its last round is where all arms start: alone, alone for as long as the
slowest method takes, and with each method, all for one short round. Its own last round is the comparison that tells a
lasting gain from faster learning: it is alone too, and many times as long. Choices look at the tuning scenes alone; the
tables have the reported scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from kd_det.common import environment
from kd_det.common.errors import SetupError, did_you_mean, non_negative, one_of, positive, whole_number
from kd_det.common.files import read_json, write_json
from kd_det.common.processes import run_side_by_side
from kd_det.common.run_steps import fingerprint
from kd_det.config import load_config
from kd_det.modeling.terms import TERMS
from kd_det.studies.digits_runs import Runs, Training, config_of, scenes_recipe, seeds_of, training
from kd_det.studies.methods import STUDENT, TEACHER, all_methods, arm_title, recipe_of
from kd_det.studies.metrics import AP, cost, read_metrics
from kd_det.studies.rounds import Rounds, Settled, narrow_resnet, schedule
from kd_det.studies.scenes import SCENES, TRAIN_IMAGES, SharedScenes, settings_of

KIND = "digits_converged"
METHODS = ("kd", "dkd", "reviewkd", "dkd_reviewkd", "stored_dkd", "live_dkd_teacher_boxes")
LONGER = "student_longer"  # the student alone, for as long as the slowest method takes
UNLABELED = "unlabeled"  # with the teacher's scenes that the student has no labels of
UNLABELED_METHOD = "stored_dkd"
SHARE = 0.2  # of the teacher's scenes
# ResNet-50 a quarter as wide for the teacher, an eighth for the student.
WIDTHS = {TEACHER: 4, STUDENT: 8}
# Two trainings at a time leave no core for the workers of the data loader.
SOLVER = ("SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.05", "DATALOADER.NUM_WORKERS", "0")
PARTS = 4  # evaluations of a run
LEAST = 80  # iterations: metrics.json is written every 20, and keeps one evaluation each time
MARKS = {"AP_quarter": 1, "AP_half": 2, "AP": 4}


@dataclass(frozen=True)
class ConvergedStudy:
    """What to run.

    Attributes:
        output_dir: the folder of the runs' folders and of the scenes.
        results: the results file.
        methods: of ``kd_det.studies.methods``, or KD terms joined by "+".
        seeds: runs of each arm, SEED 1, 2, ...
        jobs: how many trainings run at a time.
        device: "cpu" or "cuda".
        iterations: of an arm.
        scenes: of ``SCENES``.
        train_images: number of scenes that the teacher is trained on.
        share: of these, the share that the student has. It is above 0, up to 1; below 1 there is the arm
            ``UNLABELED``, which has the others without their labels.
        student_opts: KEY, VALUE, ... of the student, after those of the study.
        teacher_opts: the same of the teacher.
        method_opts: KEY, VALUE, ... of the arms with a method.
        first: iterations of the first round.
        most: of all rounds of the student, at most.
        teacher_most: of all rounds of the teacher, at most.
        gain: AP; a round that gains less is the last. The results file has the gains of the last rounds, whatever they
            are.
        gap: AP that the teacher must have above the student alone.
    """

    output_dir: Path
    results: Path
    methods: tuple[str, ...]
    seeds: int
    jobs: int
    device: str
    iterations: int = 480
    scenes: str = "usual"
    train_images: int = TRAIN_IMAGES
    share: float = SHARE
    student_opts: tuple[str, ...] = ()
    teacher_opts: tuple[str, ...] = ()
    method_opts: tuple[str, ...] = ()
    first: int = 800
    most: int = 25600
    teacher_most: int = 12800
    gain: float = 1.0
    gap: float = 5.0

    def run(self, command: str, *, search_only: bool = False) -> dict[str, Any]:
        """Runs what is not finished. Writes the results file at the end.

        Args:
            command: the command line, for the record.
            search_only: stop before the arms; no results file is written.

        Returns:
            The content of the results file, or what the search found.

        Raises:
            SetupError: a setting is not valid, or the teacher is not far enough above the student.
            CommandError: a training failed. The same command goes on there.
        """
        self.check()
        work = _Work.prepare(self)
        teacher, student = work.settle()
        found: dict[str, Any] = {"teacher": teacher.tried, "student": student.tried}
        found |= {"teacher_iterations": teacher.best[0], "student_iterations": student.before_last[0]}
        found |= {"teacher_gain": teacher.last_gain, "student_gain": student.last_gain}
        found["gap"] = teacher.best[1] - student.best[1]
        print(f"search: {found}", flush=True)
        if not found["gap"] >= self.gap:  # nan neither
            raise SetupError(
                f"--gap {self.gap:g}: on the tuning scenes the teacher is {found['gap']:.1f} AP above the student "
                "alone. Make the student smaller (--student-opts), the teacher larger (--teacher-opts), the scenes "
                "harder (--scenes hard) or the student's share of them smaller (--share)."
            )
        if search_only:
            return found
        content: dict[str, Any] = {"kind": KIND, "source": "ours", "scenes": self.scenes, "search": found}
        content |= work.compare(teacher.best[0], student.before_last[0])
        content |= {"student_opts": self.opts_of(STUDENT), "teacher_opts": self.opts_of(TEACHER)}
        content |= {"method_opts": self.method_opts, "gain": self.gain}
        content |= {"train_images": self.train_images, "share": self.share, "seeds": list(seeds_of(self.seeds))}
        content |= {"hardware": work.runs.hardware, "versions": environment.versions(), "command": command}
        self.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.results, content)
        return content

    def check(self) -> None:
        """Raises ``SetupError`` if a setting is not valid."""
        for method in self.methods:
            unknown = [term for term in recipe_of(method).terms if term not in TERMS]
            if unknown:
                known = (*all_methods(), *TERMS)
                raise SetupError(
                    f"--methods: there is no {method!r}.{did_you_mean(unknown[0], known)} Known: "
                    f"{', '.join(all_methods())}, and KD terms joined by '+': {', '.join(TERMS)}."
                )
        one_of("--scenes", self.scenes, SCENES)
        for option, count, least in (
            ("--seeds", self.seeds, 1), ("--jobs", self.jobs, 1), ("--train-images", self.train_images, 16),
            ("--first", self.first, LEAST), ("--iterations", self.iterations, LEAST),
        ):  # fmt: skip
            whole_number(option, count, least)
        for option, count in (("--most", self.most), ("--teacher-most", self.teacher_most)):
            whole_number(option, count, 2 * self.first)
        positive("--gain", self.gain)
        non_negative("--gap", self.gap)
        if not 0 < self.share <= 1:
            raise SetupError(f"--share is {self.share:g}; it must be above 0, up to 1")
        for network in (TEACHER, STUDENT):
            load_config(config_of(network), self.opts_of(network))
        load_config(config_of(STUDENT), self.method_opts)

    def opts_of(self, network: str) -> tuple[str, ...]:
        """The overrides of the teacher, or of the student alone."""
        own = self.teacher_opts if network == TEACHER else self.student_opts
        return (*narrow_resnet(WIDTHS[network]), *SOLVER, *own)

    @property
    def distilled_opts(self) -> tuple[str, ...]:
        """The student's overrides, and its teacher's."""
        return (*self.opts_of(STUDENT), "KD.TEACHER.OPTS", str(list(self.opts_of(TEACHER))))


@dataclass(frozen=True)
class _Work:
    """The trainings of a study."""

    study: ConvergedStudy
    runs: Runs
    scenes: SharedScenes
    teacher: Rounds
    student: Rounds

    @classmethod
    def prepare(cls, study: ConvergedStudy) -> _Work:
        """Draws the scenes."""
        folder = study.output_dir / "scenes"
        scenes = SharedScenes.draw(folder, settings_of(study.scenes, study.train_images), study.share)
        runs = Runs(study.output_dir, study.device, study.jobs, scenes_recipe(folder))
        alone = [Rounds(runs, scenes, network, study.opts_of(network), study.first) for network in (TEACHER, STUDENT)]
        return cls(study, runs, scenes, *alone)

    def settle(self) -> tuple[Settled, Settled]:
        """Trains the teacher and the student alone, each until a round gains little."""
        found: list[dict[str, Any]] = run_side_by_side(
            ((self.teacher, self.study.teacher_most), (self.student, self.study.most)),
            lambda each: {"settled": each[0].settle(self.study.gain, each[1])},
            self.study.jobs,
        )
        teacher, student = (each["settled"] for each in found)
        return teacher, student

    def compare(self, teacher_iterations: int, student_iterations: int) -> dict[str, Any]:
        """The rows of all arms; the APs on the reported scenes of the teacher, of the student that all arms start from,
        and of this student with twice its training alone; and the time ratio of ``LONGER``."""
        study, seeds = self.study, seeds_of(self.study.seeds)
        iterations = PARTS * ceil(study.iterations / PARTS)
        networks = {"teacher": (self.teacher, teacher_iterations), "start": (self.student, student_iterations)}
        networks["doubled"] = (self.student, 2 * student_iterations)
        aps = {f"{name}_AP": alone.result(length)["AP"] for name, (alone, length) in networks.items()}
        teacher = self.teacher.weights(teacher_iterations)
        weights = teacher, self.student.weights(student_iterations), self._store(teacher)
        arms = (STUDENT, *study.methods, *([UNLABELED] if self.scenes.others else []))
        # Seed after seed, so that a slower hour of the machine is in all arms.
        runs = [(arm, seed) for seed in seeds for arm in arms]
        trainings = [self._arm(arm, seed, iterations, *weights) for arm, seed in runs]
        outcomes = dict(zip(runs, self._train_all(trainings), strict=True))
        of_arms = {arm: [outcomes[arm, seed] for seed in seeds] for arm in arms}
        ratio = self._time_ratio(of_arms, [run.overrides for run in trainings[: len(arms)]])
        longer = PARTS * ceil(iterations * ratio / PARTS)
        of_longer = self._train_all([self._arm(LONGER, seed, longer, *weights) for seed in seeds])
        rows = [_row(STUDENT, iterations, of_arms.pop(STUDENT)), _row(LONGER, longer, of_longer)]
        rows += [_row(arm, iterations, results) for arm, results in of_arms.items()]
        return {"rows": rows, **aps, "time_ratio": ratio}

    def _store(self, teacher: Path) -> Path | None:
        """What the teacher knows of the student's scenes and of the others, if an arm needs it."""
        others = self.scenes.others
        if not (others or any(recipe_of(method).stored for method in self.study.methods)):
            return None
        data = self.scenes.overrides(self.scenes.learnt, [self.scenes.reported], others)
        return self.runs.store(teacher, (*data, *self.study.distilled_opts))

    def _arm(
        self, arm: str, seed: int, iterations: int, teacher: Path, start: Path, knowledge: Path | None
    ) -> Training:
        method = {LONGER: STUDENT, UNLABELED: UNLABELED_METHOD}.get(arm, arm)
        scenes = self.scenes
        data = scenes.overrides(scenes.learnt, [scenes.reported], scenes.others if arm == UNLABELED else None)
        study = self.study
        opts = study.opts_of(STUDENT) if method == STUDENT else (*study.distilled_opts, *study.method_opts)
        overrides = (*data, *schedule(iterations, PARTS), *opts)
        return training(method, seed, f"{arm}/seed{seed}", overrides, start, teacher, knowledge)

    def _train_all(self, trainings: Sequence[Training]) -> list[dict[str, Any]]:
        return self.runs.train_all(trainings, curve)

    def _time_ratio(self, of_arms: dict[str, list[dict[str, Any]]], settings: Sequence[tuple[str, ...]]) -> float:
        """How much longer the slowest method's step takes than the plain student's.

        It is measured once for the same arms and settings: the runs of ``LONGER`` depend on it, and further seeds would
        change it a little.
        """
        path = self.runs.output_dir / "time_ratio.json"
        of = fingerprint({"arms": list(of_arms), "settings": settings})
        known = read_json(path)
        if known.get("of") == of:
            return float(known["ratio"])
        steps = {arm: median(run["seconds_per_iteration"] for run in runs) for arm, runs in of_arms.items()}
        ratio = max(1.0, max(steps.values()) / steps[STUDENT])
        write_json(path, {"of": of, "ratio": ratio, "seconds_per_iteration": steps})
        return ratio


def curve(folder: Path) -> dict[str, Any]:
    """AP of a finished run after a quarter, half and all of its schedule, and its cost."""
    metrics = read_metrics(folder / "metrics.json")
    evaluations = [entry for entry in metrics if AP in entry]
    period = evaluations[-1]["iteration"] // PARTS
    # The last evaluation is logged at the number of iterations, the others one before theirs.
    by_part = {min(PARTS, (entry["iteration"] + 1) // period): entry[AP] for entry in evaluations}
    return {**{name: by_part[part] for name, part in MARKS.items()}, **cost(metrics)}


def _row(arm: str, iterations: int, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    titles = {
        LONGER: f"{arm_title(STUDENT)}, same time",
        UNLABELED: f"{arm_title(UNLABELED_METHOD)} + unlabelled scenes",
    }
    lists = {key: [run[key] for run in results] for key in (*MARKS, "seconds_per_iteration", "memory_mib")}
    return {"arm": arm, "title": titles.get(arm) or arm_title(arm), "iterations": iterations, **lists}
