"""TEACHER.AUTO_TRAIN: trains the teacher before the student, as a command of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from classification.checkpoint import BEST, STUDENT, read_student, weights_path
from classification.composition import OUTPUT
from classification.results import RESULT
from classification.states import last_state
from kd_det.common.config_files import find_configs
from kd_det.common.errors import SetupError
from kd_det.common.files import read_json
from kd_det.common.processes import CommandError, forwarding_sigterm, stream
from kd_det.common.registry import import_options
from kd_det.common.signals import SIGNALS, StopRequested
from kd_det.common.yaml_files import read_config_file

# Variables that tell a process that it is one of several.
LAUNCHED = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"),
}

# The keys of DATA that a teacher's training gets from the student's. The batch is of each training's own recipe.
PASSED_ON = (
    *("NAME", "ROOT", "IMAGE_SIZE", "WORKERS", "EVAL_BATCH_SIZE"),
    *("AUTO_AUGMENT", "LABEL_NOISE", "LABEL_NOISE_SEED"),
)


def train_teacher(cfg: CfgNode) -> None:
    """Trains the teacher by TEACHER.CONFIG_FILES on the data of ``cfg``, unless its file is there already.

    An interrupted training is resumed. A file that no run of this project wrote, imported or given, is used as it is,
    and so is one whose run is finished.

    Raises:
        SetupError: TEACHER.WEIGHTS is not the name of a run, TEACHER.CONFIG_FILES is empty, the run that left the file
            had other labels, or the training failed.
        StopRequested: the training was stopped by a signal; it has saved its state.
    """
    node = cfg.TEACHER
    path = weights_path(node.WEIGHTS)
    is_run = path.name in (STUDENT, BEST) and path.parent != Path(OUTPUT) and path.parts[0] == OUTPUT
    finished = (path.parent / RESULT).is_file() or last_state(path.parent) is None
    if path.is_file() and (finished or not is_run or not _is_of_a_run(path)):
        _check_labels(cfg, path)
        return
    if not is_run or not node.CONFIG_FILES:
        raise SetupError(
            f"TEACHER.AUTO_TRAIN: TEACHER.WEIGHTS is {node.WEIGHTS!r} and TEACHER.CONFIG_FILES "
            f"{list(node.CONFIG_FILES)}. Set TEACHER.WEIGHTS to the name of a run, such as 'cifar100/vanilla_res32x4', "
            "and TEACHER.CONFIG_FILES to its configurations, such as ['cifar100/base.yaml']; or train the teacher "
            "yourself and give its model.pth."
        )
    paths = find_configs(node.CONFIG_FILES, "TEACHER.CONFIG_FILES")
    files = list(paths)
    command = [sys.executable, "-m", "classification.train", "--resume", *import_options(), "--config-file", *files]
    command += ["STUDENT.NAME", node.NAME, "STUDENT.STEM", node.STEM, "STUDENT.IMAGE_SIZE", str(node.IMAGE_SIZE)]
    command += [*_data_options(cfg, list(paths.values())), "OUTPUT_DIR", str(path.parent)]
    command += ["SOLVER.SAVE_BEST", "True"] if path.name == BEST else []
    print(f"Training the teacher first: {node.WEIGHTS}, with {' '.join(files)}", flush=True)
    try:
        with forwarding_sigterm():
            stream(command, environment=_single_process(), progress=[""])
    except CommandError as error:
        for number in SIGNALS:
            if error.code in (-number, 128 + number):
                raise StopRequested(number) from error
        raise SetupError(
            f"TEACHER.AUTO_TRAIN: the training with {files} ended with code {error.code}; its last lines tell why."
        ) from error


def _is_of_a_run(path: Path) -> bool:
    """Whether a run of this project wrote the file: it then says after which epoch. Imported files do not."""
    return "epoch" in read_student(path, "TEACHER.WEIGHTS")


def _data_options(cfg: CfgNode, files: Sequence[str]) -> list[str]:
    """KEY VALUE ... for the data of ``cfg``. AUTO_AUGMENT is left out where the teacher's own files set it."""
    own = {key for path in files for key in read_config_file(path, "TEACHER.CONFIG_FILES").get("DATA", {})}
    keys = [key for key in PASSED_ON if key != "AUTO_AUGMENT" or key not in own]
    return [part for key in keys for part in (f"DATA.{key}", str(cfg.DATA[key]))]


def _check_labels(cfg: CfgNode, path: Path) -> None:
    """Raises ``SetupError`` if the file's run had other labels than this one."""
    theirs = (read_json(path.parent / RESULT).get("config") or {}).get("DATA", {})
    keys = ["LABEL_NOISE", *(["LABEL_NOISE_SEED"] if cfg.DATA.LABEL_NOISE else [])]
    for key in keys:
        if theirs.get(key, cfg.DATA[key]) != cfg.DATA[key]:
            raise SetupError(
                f"TEACHER.AUTO_TRAIN: {str(path)!r} was trained with DATA.{key} {theirs[key]}, this run has "
                f"{cfg.DATA[key]}. Give TEACHER.WEIGHTS another name, such as "
                f"{cfg.DATA.NAME + '/noisy_' + cfg.TEACHER.NAME!r}, or set TEACHER.AUTO_TRAIN False."
            )


def _single_process() -> dict[str, str]:
    """The environment without the variables of a launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return {name: value for name, value in kept.items() if not name.startswith(("ACCELERATE_", "TORCHELASTIC_"))}
