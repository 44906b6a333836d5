"""``kd-det study converged``: distillation against students and a teacher that longer training would not improve.

Each network is trained by schedules that double until the gain in AP is small. Students are then compared on the
schedule whose doubling no longer pays, alone and with each method. Choices look at the tuning scenes alone; the tables
have the reported scenes. See ``kd_det.studies.scenes``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean, median
from typing import Any

from kd_det.common import environment
from kd_det.common.errors import SetupError, did_you_mean, non_negative, one_of, positive, whole_number
from kd_det.common.files import read_json, write_json
from kd_det.common.run_steps import fingerprint
from kd_det.config import load_config
from kd_det.modeling.terms import TERMS
from kd_det.studies.digits_runs import WEIGHTS, Runs, Training, config_of, scenes_recipe, seeds_of, training
from kd_det.studies.methods import STUDENT, TEACHER, all_methods, arm_title, recipe_of
from kd_det.studies.metrics import cost, read_metrics
from kd_det.studies.scenes import SCENES, TRAIN_IMAGES, make_study_scenes, overrides_of, settings_of

KIND = "digits_converged"
METHODS = ("kd", "dkd", "reviewkd", "dkd_reviewkd", "stored_dkd")
LONGER = "student_longer"  # the student alone, for as long as the slowest method takes
TEACHER_SEED = 1
WARM_UP = {TEACHER: 300, STUDENT: 800}  # iterations of the backbones
# An eighth as wide as ResNet-50: the shipped student comes within 4 AP of the teacher after 800 iterations.
SMALL_STUDENT = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "32", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "64",
)  # fmt: skip
PARTS = 4  # evaluations of a run
LEAST = 80  # iterations: metrics.json is written every 20, and keeps one evaluation each time
MARKS = {"AP_quarter": 1, "AP_half": 2, "AP": 4}


@dataclass(frozen=True)
class Settled:
    """The schedules that a network was trained by.

    Attributes:
        tried: iterations and AP on the tuning scenes; the last doubling gained less than the threshold.
    """

    tried: tuple[tuple[int, float], ...]

    @property
    def iterations(self) -> int:
        """The schedule whose doubling gained less than the threshold."""
        return self.tried[-2][0]

    @property
    def best(self) -> tuple[int, float]:
        """The better of the last two, the ones that the threshold compares."""
        return max(self.tried[-2:], key=lambda each: each[1])


@dataclass(frozen=True)
class ConvergedStudy:
    """What to run.

    Attributes:
        output_dir: the folder of the runs' folders and of the scenes.
        results: the results file.
        methods: of ``kd_det.studies.methods``, or KD terms joined by "+".
        seeds: runs of each arm, SEED 1, 2, ...
        search_seeds: runs of each schedule of the student alone that is tried.
        jobs: how many trainings run at a time.
        device: "cpu" or "cuda".
        scenes: of ``SCENES``.
        train_images: number of scenes for training.
        student_opts: KEY, VALUE, ... of the student, after those of ``SMALL_STUDENT``.
        teacher_opts: the same of the teacher.
        first: iterations of the shortest schedule tried.
        most: of the longest allowed.
        gain: AP; a doubling that gains less ends the search.
        gap: AP that the teacher must have above the student alone.
    """

    output_dir: Path
    results: Path
    methods: tuple[str, ...]
    seeds: int
    search_seeds: int
    jobs: int
    device: str
    scenes: str = "usual"
    train_images: int = TRAIN_IMAGES
    student_opts: tuple[str, ...] = ()
    teacher_opts: tuple[str, ...] = ()
    first: int = 400
    most: int = 6400
    gain: float = 1.0
    gap: float = 5.0

    def run(self, command: str, *, search_only: bool = False) -> dict[str, Any]:
        """Runs what is not finished. Writes the results file at the end.

        Args:
            command: the command line, for the record.
            search_only: stop when the schedules are chosen; no results file is written.

        Returns:
            The content of the results file, or what the search found.

        Raises:
            SetupError: a setting is not valid, a network still gains at the longest schedule, or the teacher is not far
                enough above the student.
            CommandError: a training failed. The same command goes on there.
        """
        self.check()
        folder, settings = self.output_dir / "scenes", settings_of(self.scenes, self.train_images)
        train, val, tune = make_study_scenes(folder, settings)
        scenes = overrides_of([train, val, tune], train=[train], test=[val, tune])
        runs = Runs(self.output_dir, self.device, self.jobs, scenes_recipe(folder))
        work = _Work(self, runs, scenes)
        teacher, student = work.settle(TEACHER), work.settle(STUDENT)
        found: dict[str, Any] = {"teacher": teacher.tried, "student": student.tried, "iterations": student.iterations}
        found["teacher_iterations"] = teacher.best[0]
        found["gap"] = teacher.best[1] - student.best[1]
        print(f"search: {found}", flush=True)
        if not found["gap"] >= self.gap:  # nan neither
            raise SetupError(
                f"--gap {self.gap:g}: on the tuning scenes the teacher is {found['gap']:.1f} AP above the student "
                "alone. Make the student smaller (--student-opts), the teacher larger (--teacher-opts) or the scenes "
                "harder (--scenes hard)."
            )
        if search_only:
            return found
        rows, teacher_ap, ratio = work.compare(teacher.best[0], student.iterations)
        content: dict[str, Any] = {"kind": KIND, "source": "ours", "scenes": self.scenes, "search": found}
        content |= {"student_opts": self.opts_of(STUDENT), "teacher_opts": self.teacher_opts}
        content |= {"gain": self.gain, "search_seeds": self.search_seeds, "teacher_AP": teacher_ap, "time_ratio": ratio}
        content |= {"train_images": self.train_images, "rows": rows, "seeds": list(seeds_of(self.seeds))}
        content |= {"hardware": runs.hardware, "versions": environment.versions(), "command": command}
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
            ("--seeds", self.seeds, 1), ("--search-seeds", self.search_seeds, 1), ("--jobs", self.jobs, 1),
            ("--train-images", self.train_images, 16), ("--first", self.first, LEAST),
        ):  # fmt: skip
            whole_number(option, count, least)
        whole_number("--most", self.most, 2 * self.first)
        positive("--gain", self.gain)
        non_negative("--gap", self.gap)
        for network in (TEACHER, STUDENT):
            load_config(config_of(network), self.opts_of(network))

    def opts_of(self, network: str) -> tuple[str, ...]:
        """The overrides of the teacher, or of the student alone."""
        return self.teacher_opts if network == TEACHER else (*SMALL_STUDENT, *self.student_opts)

    @property
    def distilled_opts(self) -> tuple[str, ...]:
        """The student's overrides, and its teacher's."""
        return (*self.opts_of(STUDENT), "KD.TEACHER.OPTS", str(list(self.teacher_opts)))


@dataclass(frozen=True)
class _Work:
    """The trainings of a study."""

    study: ConvergedStudy
    runs: Runs
    scenes: tuple[str, ...]

    def settle(self, network: str) -> Settled:
        """Trains a network by schedules that double until the gain is small."""
        study = self.study
        seeds = [TEACHER_SEED] if network == TEACHER else seeds_of(study.search_seeds)

        def tuning_ap(iterations: int) -> float:
            trainings = [self._plain(network, seed, iterations) for seed in seeds]
            outcomes = self._train_all(trainings) if network == STUDENT else [self.runs.train(trainings[0], curve)]
            return fmean(outcome["AP_tune"] for outcome in outcomes)

        first = PARTS * ceil(study.first / PARTS)
        return until_settled(tuning_ap, first, study.gain, study.most, f"the {arm_title(network)}")

    def compare(self, teacher_iterations: int, iterations: int) -> tuple[list[dict[str, Any]], float, float]:
        """The rows of all arms, the teacher's AP on the reported scenes, and the time ratio of ``LONGER``."""
        study, seeds = self.study, seeds_of(self.study.seeds)
        of_teacher = self._plain(TEACHER, TEACHER_SEED, teacher_iterations)
        teacher = self.runs.train(of_teacher, curve)
        weights = self.runs.output_dir / of_teacher.folder / WEIGHTS
        stored = any(recipe_of(method).stored for method in study.methods)
        knowledge = self.runs.store(weights, (*self.scenes, *study.distilled_opts)) if stored else None
        start = self._start(STUDENT)
        # Seed after seed, so that a slower hour of the machine is in all arms.
        chosen = [(arm, seed) for seed in seeds for arm in (STUDENT, *study.methods)]
        trainings = []
        for arm, seed in chosen:
            opts = study.opts_of(STUDENT) if arm == STUDENT else study.distilled_opts
            overrides = self._overrides(iterations, opts)
            trainings.append(training(arm, seed, _folder(arm, seed, iterations), overrides, start, weights, knowledge))
        outcomes = dict(zip(chosen, self._train_all(trainings), strict=True))
        of_arms = {arm: [outcomes[arm, seed] for seed in seeds] for arm in (STUDENT, *study.methods)}
        ratio = self._time_ratio(of_arms, iterations)
        longer = PARTS * ceil(iterations * ratio / PARTS)
        of_longer = self._train_all([self._plain(STUDENT, seed, longer) for seed in seeds])
        rows = [_row(STUDENT, arm_title(STUDENT), iterations, of_arms.pop(STUDENT))]
        rows.append(_row(LONGER, f"{arm_title(STUDENT)}, same time", longer, of_longer))
        rows += [_row(arm, arm_title(arm), iterations, results) for arm, results in of_arms.items()]
        return rows, teacher["AP"], ratio

    def _plain(self, network: str, seed: int, iterations: int) -> Training:
        overrides = self._overrides(iterations, self.study.opts_of(network))
        start = {"MODEL.WEIGHTS": self._start(network)}
        return Training(_folder(network, seed, iterations), seed, config_of(network), overrides, start)

    def _start(self, network: str) -> Path:
        return self.runs.warm_up(network, WARM_UP[network], self.study.opts_of(network))

    def _overrides(self, iterations: int, opts: tuple[str, ...]) -> tuple[str, ...]:
        part = str(iterations // PARTS)
        schedule = ("SOLVER.MAX_ITER", str(iterations), "TEST.EVAL_PERIOD", part, "SOLVER.CHECKPOINT_PERIOD", part)
        return (*self.scenes, *schedule, *opts)

    def _train_all(self, trainings: Sequence[Training]) -> list[dict[str, Any]]:
        return self.runs.train_all(trainings, curve)

    def _time_ratio(self, of_arms: dict[str, list[dict[str, Any]]], iterations: int) -> float:
        """How much longer the slowest method's step takes than the plain student's.

        It is measured once: the runs of ``LONGER`` depend on it, and further seeds would change it a little.
        """
        path = self.runs.output_dir / "time_ratio.json"
        of = fingerprint({"arms": list(of_arms), "overrides": self._overrides(iterations, self.study.distilled_opts)})
        known = read_json(path)
        if known.get("of") == of:
            return float(known["ratio"])
        steps = {arm: median(run["seconds_per_iteration"] for run in runs) for arm, runs in of_arms.items()}
        ratio = max(1.0, max(steps.values()) / steps[STUDENT])
        write_json(path, {"of": of, "ratio": ratio, "seconds_per_iteration": steps})
        return ratio


def until_settled(ap_of: Callable[[int], float], first: int, gain: float, most: int, who: str) -> Settled:
    """Doubles a schedule until that gains less than ``gain`` AP.

    Args:
        ap_of: gives the AP after a number of iterations.
        first: iterations of the first schedule.
        gain: see above.
        most: iterations of the longest schedule.
        who: what is trained, for the message.

    Raises:
        SetupError: it still gains at the longest schedule.
    """
    tried = [(first, ap_of(first))]
    while len(tried) < 2 or tried[-1][1] - tried[-2][1] >= gain:
        iterations = 2 * tried[-1][0]
        if iterations > most:
            shown = ", ".join(f"{ap:.1f} after {length}" for length, ap in tried)
            raise SetupError(f"--most {most}: {who} still gains {gain:g} AP or more ({shown}). Give a larger --most.")
        tried.append((iterations, ap_of(iterations)))
    return Settled(tuple(tried))


def curve(folder: Path) -> dict[str, Any]:
    """AP of a finished run after a quarter, half and all of its schedule, its AP on the tuning scenes, and its cost."""
    metrics = read_metrics(folder / "metrics.json")
    key = "scenes_val/bbox/AP"
    evaluations = [entry for entry in metrics if key in entry]
    last = evaluations[-1]
    period = last["iteration"] // PARTS
    # The last evaluation is logged at the number of iterations, the others one before theirs.
    by_part = {min(PARTS, (entry["iteration"] + 1) // period): entry[key] for entry in evaluations}
    aps = {name: by_part[part] for name, part in MARKS.items()}
    return {**aps, "AP_tune": last["scenes_tune/bbox/AP"], **cost(metrics)}


def _folder(arm: str, seed: int, iterations: int) -> str:
    return f"{arm}_{iterations}/seed{seed}"


def _row(arm: str, title: str, iterations: int, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kept = (*MARKS, "AP_tune", "seconds_per_iteration", "memory_mib")
    lists = {key: [run[key] for run in results] for key in kept}
    return {"arm": arm, "title": title, "iterations": iterations, **lists}
