"""Finished runs, as the analyses take them: loaded, compared, and asked for their answers to a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from classification.checkpoint import STUDENT, describe_folder, read_student
from classification.config import check_config, get_config
from classification.data import Data, build_data
from classification.data.loaders import Batch
from classification.models.protocol import ClassificationModel, ModelOutput
from classification.networks import FrozenTeacher, build_student, build_teacher
from classification.results import RESULT
from kd_det.common.config_merge import merge_config
from kd_det.common.errors import SetupError
from kd_det.common.files import read_json


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, loaded.

    Attributes:
        name: its name in tables and pictures: its folder below "output/".
        folder: its OUTPUT_DIR as found, which may differ from cfg.OUTPUT_DIR.
        cfg: its full configuration, with the overrides that were given.
        result: the content of its result.json; of a checkpoint alone, "last_top1" as its file has it, or None.
        student: with the weights of its model.pth, in evaluation mode, frozen, on ``device``.
        data: its own data set, on ``device``.
        device: of student and data.
    """

    name: str
    folder: Path
    cfg: CfgNode
    result: dict[str, Any]
    student: ClassificationModel
    data: Data
    device: torch.device

    def teacher(self) -> FrozenTeacher:
        """Its teacher, on ``device``. Every call loads it again.

        Raises:
            SetupError: the configuration names no teacher, or it cannot be loaded.
        """
        return build_teacher(self.cfg, self.data).to(self.device)


def load_run(path_or_name: str | Path, overrides: Sequence[object] = (), device: str | None = None) -> FinishedRun:
    """Loads a finished run, or a model.pth alone, such as an imported teacher's. The files must belong to one model.

    Args:
        path_or_name: its OUTPUT_DIR, the model.pth in it, or its name below output/ ("digits/dkd_resnet20_resnet8").
        overrides: KEY VALUE ... of its configuration, such as DATA.ROOT if the data have moved.
        device: None: the GPU if there is one.

    Raises:
        SetupError: the run does not exist or is not finished, its configuration does not fit this version, a file is
            truncated or belongs to another model, or its data are missing.
    """
    folder = find_folder(path_or_name)
    if describe_folder(folder).startswith(f"a {STUDENT} without"):
        cfg, result = _of_checkpoint(folder / STUDENT, overrides)
    else:
        cfg, result = _of_run(folder, str(path_or_name), overrides)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = build_data(cfg, place)
    finished = cfg.clone()
    finished.STUDENT.PRETRAINED, finished.STUDENT.WEIGHTS = False, str(folder / STUDENT)
    student = build_student(finished, data)
    student.to(place).eval().requires_grad_(False)
    return FinishedRun(_name(folder), folder, cfg, result, student, data, place)


def _of_run(folder: Path, given: str, overrides: Sequence[object]) -> tuple[CfgNode, dict[str, Any]]:
    """The configuration and the result of a run."""
    result = read_json(folder / RESULT)
    if not isinstance(result.get("config"), dict) or not (folder / STUDENT).is_file():
        raise SetupError(
            f"run {given!r}: {str(folder)!r} has no complete {RESULT} and {STUDENT}. Either the training is not "
            "finished (continue it with --resume), or the folder is not a run's OUTPUT_DIR."
        )
    cfg = get_config()
    try:
        cfg.merge_from_other_cfg(CfgNode(result["config"]))
    except (KeyError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise SetupError(f"{str(folder / RESULT)!r} is of another version of this project: {reason}.") from error
    return _overridden(cfg, overrides), result


def _of_checkpoint(path: Path, overrides: Sequence[object]) -> tuple[CfgNode, dict[str, Any]]:
    """A configuration and a result from what the file itself says: model and data set."""
    content = read_student(path, "run")
    cfg = get_config()
    keys = {"STUDENT.NAME": "name", "STUDENT.STEM": "stem", "STUDENT.IMAGE_SIZE": "image_size", "DATA.NAME": "data"}
    for key, name in keys.items():
        if name in content:
            merge_config(cfg, "", [key, content[name]], source=str(path))
    given = [str(key) for key in overrides[::2]]
    missing = [key for key, name in keys.items() if name in ("name", "data") and name not in content]
    if absent := [key for key in missing if key not in given]:
        raise SetupError(f"run {str(path)!r}: the file does not say its {absent[0]}. Give --opts {absent[0]} and it.")
    return _overridden(cfg, overrides), {"last_top1": content.get("top1")}


def _overridden(cfg: CfgNode, overrides: Sequence[object]) -> CfgNode:
    merge_config(cfg, "", list(map(str, overrides)), source="run")
    check_config(cfg)
    return cfg


def find_folder(path_or_name: str | Path) -> Path:
    """The folder of a run; see ``load_run``.

    Raises:
        SetupError: there is no such folder.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path.parent
    for folder in (path, Path("output") / path):
        if folder.is_dir():
            return folder
    raise SetupError(
        f"run {str(path)!r}: neither {str(path)!r} nor {str(Path('output') / path)!r} is a folder. Give a run's "
        "OUTPUT_DIR, or its name below output/."
    )


def _name(folder: Path) -> str:
    """The path below the last folder called output; without one, the last two folders."""
    parts = folder.resolve().parts
    if "output" in parts[:-1]:
        return "/".join(parts[len(parts) - parts[::-1].index("output") :])
    return "/".join(parts[-2:])


class Answers(NamedTuple):
    """A network's answers to all samples of a data set, in their order, on the CPU.

    Shape legend: N samples, C classes, D channels before the classifier.
    """

    pooled: Tensor  # (N, D) float32: the penultimate features
    logits: Tensor  # (N, C) float32
    labels: Tensor  # (N,) int64


@torch.inference_mode()
def collect(answer: Callable[[Tensor], ModelOutput], batches: Iterable[Batch]) -> Answers:
    """A network's answers, in float32 whatever precision it was trained in.

    Args:
        answer: gives the output for images (B, 3, H, W); a network in evaluation mode.
        batches: at least one.
    """
    parts: list[Answers] = []
    for batch in batches:
        output = answer(batch.images)
        parts.append(Answers(output.pooled.float().cpu(), output.logits.float().cpu(), batch.labels.cpu()))
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))


def check_same_samples(first: FinishedRun, *others: FinishedRun) -> None:
    """Raises ``SetupError`` if the runs do not validate on the same samples of the same classes."""
    for other in others:
        _check_samples(first, other)


def _check_samples(first: FinishedRun, second: FinishedRun) -> None:
    names = [run.cfg.DATA.NAME for run in (first, second)]
    sizes = [(run.data.class_names, run.data.val.samples) for run in (first, second)]
    if names[0] != names[1] or sizes[0] != sizes[1]:
        counts = [
            f"{name!r}, {len(classes)} classes, {n} images" for name, (classes, n) in zip(names, sizes, strict=True)
        ]
        raise SetupError(
            f"{first.name} validates on {counts[0]}, {second.name} on {counts[1]}. Give runs on the same data."
        )


def check_same_teacher(first: FinishedRun, *others: FinishedRun) -> None:
    """Raises ``SetupError`` if the configurations of the runs name different teachers."""
    for other in others:
        _check_teacher(first, other)


def _check_teacher(first: FinishedRun, second: FinishedRun) -> None:
    for key in ("NAME", "WEIGHTS", "PRETRAINED", "STEM", "IMAGE_SIZE"):
        values = [run.cfg.TEACHER[key] for run in (first, second)]
        if values[0] != values[1]:
            raise SetupError(
                f"TEACHER.{key} of {first.name} is {values[0]!r}, of {second.name} {values[1]!r}. Compare runs with "
                "the same teacher, or name one for both, such as --opts TEACHER.NAME resnet20 TEACHER.WEIGHTS "
                "a/model.pth."
            )
