"""The commands of the studies on the digits scenes, each in a folder of its own: warm-ups, trainings, knowledge."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_det.common import environment
from kd_det.common.errors import SetupError
from kd_det.common.files import read_json
from kd_det.common.processes import forwarding_sigterm, run_side_by_side, threads_of_each
from kd_det.common.run_steps import file_digest, run_step
from kd_det.config import load_config
from kd_det.data.digits_scenes import NAME
from kd_det.data.knowledge_format import INDEX
from kd_det.studies.methods import STUDENT, TEACHER, recipe_of
from kd_det.studies.metrics import average_precision, cost, read_metrics, weights_mib

CONFIGS = "digits_det"  # the folder of the shipped configurations
WEIGHTS = "model_final.pth"  # Detectron2's name for the last checkpoint
WARM_UP_LR = {TEACHER: 0.001, STUDENT: 0.003}
STORED = "KD.TEACHER.STORED"
TEACHER_WEIGHTS = "KD.TEACHER.WEIGHTS"
# A file, or a folder of knowledge, by the key that names it.
Inputs = Mapping[str, Path]
Collect = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Training:
    """A training run.

    Attributes:
        folder: its folder, below the study's.
        seed: SEED.
        config: its configuration.
        overrides: KEY, VALUE, ...
        inputs: weights and knowledge; the run is repeated when their content changes.
    """

    folder: str
    seed: int
    config: str
    overrides: tuple[str, ...] = ()
    inputs: Inputs = field(default_factory=dict)


@dataclass(frozen=True)
class Runs:
    """Runs commands that are not finished, and reads the results of those that are.

    Attributes:
        output_dir: the study's folder.
        device: "cpu" or "cuda".
        jobs: how many trainings run at a time; they share the cores equally.
        data: what the data sets depend on (JSON-able).
    """

    output_dir: Path
    device: str
    jobs: int = 1
    data: Any = None

    @property
    def threads(self) -> int | None:
        """CPU threads of each of several trainings; None: PyTorch's own choice."""
        return threads_of_each(self.jobs)

    @property
    def hardware(self) -> dict[str, Any]:
        """The machine, for the record."""
        machine = environment.hardware(self.device) | {"runs_at_a_time": self.jobs}
        return machine | ({"torch_threads": self.threads} if self.threads else {})

    def warm_up(self, network: str, iterations: int, overrides: Sequence[str] = ()) -> Path:
        """The backbone's weights of ``TEACHER`` or ``STUDENT``, pretrained on digit classification."""
        folder = self.output_dir / f"{network}_warm_up"
        config, output = config_of(network), folder / "backbone.pth"
        options = ["--iterations", str(iterations), "--max-lr", str(WARM_UP_LR[network])]
        settings = [*overrides, "MODEL.DEVICE", self.device]
        command = [sys.executable, "-m", "kd_det.studies.warm_up", "--config-file", config]
        command += ["--output", str(output), *options, *settings]
        cfg = load_config(config, settings)
        recipe = {"options": options, "config": cfg.dump(), "versions": environment.versions()}
        run_step(folder, recipe, output.name, lambda resume: command, dict)
        return output

    def train(self, run: Training, collect: Collect, threads: int | None = None) -> dict[str, Any]:
        """The result of a training run: what ``collect`` reads in its folder, its seed and its seconds."""
        folder = self.output_dir / run.folder
        overrides = ["OUTPUT_DIR", str(folder), "SEED", str(run.seed), "MODEL.DEVICE", self.device]
        overrides += [*run.overrides, *_pairs(run.inputs)]
        cfg = load_config(run.config, overrides)
        recipe = self._recipe(cfg.dump(), run.inputs)
        if TEACHER_WEIGHTS in run.inputs:
            recipe["teacher"] = load_config(cfg.KD.TEACHER.CONFIG_FILE).dump()

        def command(resume: bool) -> list[str]:
            flags = ["--resume"] if resume else []
            return [sys.executable, "-m", "kd_det", "train", "--config-file", run.config, *flags, *overrides]

        return run_step(folder, recipe, WEIGHTS, command, lambda: {**collect(folder), "seed": run.seed}, threads)

    def train_all(self, runs: Sequence[Training], collect: Collect) -> list[dict[str, Any]]:
        """The results of several training runs, ``jobs`` at a time."""
        with forwarding_sigterm():
            return run_side_by_side(runs, lambda run: self.train(run, collect, self.threads), self.jobs)

    def store(self, teacher_weights: Path, overrides: Sequence[str] = ()) -> Path:
        """The folder of the teacher's knowledge of the training images."""
        folder, inputs = self.output_dir / "knowledge", {TEACHER_WEIGHTS: teacher_weights}
        settings = ["MODEL.DEVICE", self.device, *overrides, *_pairs(inputs)]
        command = [sys.executable, "-m", "kd_det", "store-teacher", "--config-file", config_of("dkd")]
        command += ["--output", str(folder), *settings]
        cfg = load_config(config_of("dkd"), settings)
        recipe = self._recipe(cfg.dump(), inputs) | {"teacher": load_config(cfg.KD.TEACHER.CONFIG_FILE).dump()}
        run_step(folder, recipe, INDEX, lambda resume: command, dict)
        return folder

    def import_predictions(self, predictions: Path, name: str, config: str) -> Path:
        """The folder of knowledge that ``kd-det import-teacher`` makes of predictions of the training images.

        Args:
            predictions: the file, with its folder below the study's.
            name: of the folder of knowledge.
            config: the student's configuration.
        """
        folder = self.output_dir / name
        command = [sys.executable, "-m", "kd_det", "import-teacher", str(predictions), "--config-file", config]
        command += ["--output", str(folder)]
        recipe = self._recipe(load_config(config).dump(), {"predictions": predictions})
        run_step(folder, recipe, INDEX, lambda resume: command, dict)
        return folder

    def _recipe(self, config: str, inputs: Inputs) -> dict[str, Any]:
        digests = {key: file_digest(path / INDEX if key == STORED else path) for key, path in inputs.items()}
        return {"config": config, "inputs": digests, "data": self.data, "versions": environment.versions()}


def config_of(arm: str) -> str:
    """The name of the shipped configuration of the teacher, the student alone, or a method."""
    return f"{CONFIGS}/{arm if arm in (TEACHER, STUDENT) else recipe_of(arm).config}.yaml"


def arguments_of(method: str, knowledge: Path) -> str:
    """What follows --config-file in the command that trains a method, except for its weights and schedule."""
    recipe = recipe_of(method)
    stored = [STORED, str(knowledge)] if recipe.stored else []
    return shlex.join([config_of(method), *recipe.overrides, *stored])


def training(
    arm: str, seed: int, folder: str, overrides: Sequence[str], start: Path, teacher: Path, knowledge: Path | None
) -> Training:
    """The run of the student alone, or with a method.

    Args:
        arm: ``STUDENT`` or a method.
        seed: SEED.
        folder: below the study's.
        overrides: KEY, VALUE, ... before the method's own.
        start: MODEL.WEIGHTS.
        teacher: the teacher's weights.
        knowledge: the teacher's stored knowledge, for methods that train from it.
    """
    inputs = {"MODEL.WEIGHTS": start}
    if arm == STUDENT:
        return Training(folder, seed, config_of(arm), tuple(overrides), inputs)
    recipe = recipe_of(arm)
    inputs[TEACHER_WEIGHTS] = teacher
    if recipe.stored:
        assert knowledge is not None
        inputs[STORED] = knowledge
    return Training(folder, seed, config_of(arm), (*overrides, *recipe.overrides), inputs)


def last_result(folder: Path) -> dict[str, Any]:
    """AP, cost and size of a finished training run."""
    metrics = read_metrics(folder / "metrics.json")
    return {**average_precision(metrics), **cost(metrics), "weights_mib": weights_mib(folder / WEIGHTS)}


def row_of(arm: str, title: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of a results file: lists of what ``last_result`` reads, with one entry for each seed."""
    kept = ("AP", "AP50", "AP75", "best_AP", "seconds_per_iteration", "memory_mib")
    return {"arm": arm, "title": title, **{key: [run[key] for run in results] for key in kept}}


def datasets_root() -> str:
    """The folder in which Detectron2 looks for data sets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def scenes_recipe(root: str | Path) -> Any:
    """What made the digits scenes in a folder of data sets (JSON-able)."""
    return read_json(Path(root) / NAME / "manifest.json")["recipe"]


def seeds_of(count: int) -> tuple[int, ...]:
    """The seeds 1 to ``count``.

    Raises:
        SetupError: the count is below 1.
    """
    if count < 1:
        raise SetupError(f"--seeds is {count}; give 1 or more.")
    return tuple(range(1, count + 1))


def _pairs(inputs: Inputs) -> Iterator[str]:
    for key, path in inputs.items():
        yield from (key, str(path))
