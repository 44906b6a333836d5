"""Finished runs, as the analyses take them: loaded from what training left in OUTPUT_DIR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from classification.checkpoint import STUDENT
from classification.config import check_config, get_config
from classification.data import Data, build_data
from classification.models.protocol import ClassificationModel
from classification.networks import FrozenTeacher, build_student, build_teacher
from classification.results import RESULT
from kd_det.common.config_merge import merge_config
from kd_det.common.errors import SetupError
from kd_det.common.run_steps import read_json


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: what it is called in tables and pictures: its folder, without "output/".
        folder: its OUTPUT_DIR as found, which cfg.OUTPUT_DIR need not be.
        cfg: its full configuration, with the overrides that were given.
        result: what its result.json holds.
        student: with the weights of its model.pth, in evaluation mode, frozen, on ``device``.
        data: its own data set, on ``device``.
    """

    name: str
    folder: Path
    cfg: CfgNode
    result: dict[str, Any]
    student: ClassificationModel
    data: Data
    device: torch.device

    def teacher(self) -> FrozenTeacher:
        """Its teacher, on ``device``; loaded anew by each call.

        Raises:
            SetupError: the configuration names none, or it cannot be loaded.
        """
        return build_teacher(self.cfg, self.data).to(self.device)


def load_run(path_or_name: str | Path, overrides: Sequence[object] = (), device: str | None = None) -> Run:
    """A finished run, strictly: its files must be there, of one model and whole.

    Args:
        path_or_name: its OUTPUT_DIR, the model.pth in it, or its name below output/ ("digits/dkd_resnet20_resnet8").
        overrides: KEY VALUE ... of its configuration, such as DATA.ROOT where the data have moved.
        device: None: the GPU if there is one.

    Raises:
        SetupError: it is not there or not finished, its configuration does not fit this version, a file is truncated
            or of another model, or its data are not there.
    """
    folder = find_folder(path_or_name)
    result = read_json(folder / RESULT)
    if not isinstance(result.get("config"), dict) or not (folder / STUDENT).is_file():
        raise SetupError(
            f"run {str(path_or_name)!r}: {str(folder)!r} has no whole {RESULT} and {STUDENT}; the training is not "
            "finished (--resume goes on), or it is no run's OUTPUT_DIR."
        )
    cfg = _read_config(result["config"], folder, overrides)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = build_data(cfg, place)
    finished = cfg.clone()
    finished.STUDENT.PRETRAINED, finished.STUDENT.WEIGHTS = False, str(folder / STUDENT)
    student = build_student(finished, data).to(place).eval().requires_grad_(False)
    return Run(_name(folder), folder, cfg, result, student, data, place)


def find_folder(path_or_name: str | Path) -> Path:
    """The folder of a run, see ``load_run``.

    Raises:
        SetupError: there is none.
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


def _read_config(content: dict[str, Any], folder: Path, overrides: Sequence[object]) -> CfgNode:
    cfg = get_config()
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except (KeyError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise SetupError(f"{str(folder / RESULT)!r} is of another version of this project: {reason}.") from error
    merge_config(cfg, "", list(map(str, overrides)), source="run")
    check_config(cfg)
    return cfg


def _name(folder: Path) -> str:
    """Below output/, wherever that is; otherwise the last two folders."""
    parts = folder.resolve().parts
    if "output" in parts[:-1]:
        return "/".join(parts[len(parts) - parts[::-1].index("output") :])
    return "/".join(parts[-2:])
