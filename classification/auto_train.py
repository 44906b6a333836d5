"""TEACHER.AUTO_TRAIN: trains the teacher before the student, as a command of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fvcore.common.config import CfgNode

from classification.checkpoint import STUDENT, weights_path
from classification.composition import OUTPUT
from classification.results import RESULT
from classification.states import last_state
from kd_det.common.config_files import find_configs
from kd_det.common.errors import SetupError
from kd_det.common.processes import CommandError, forwarding_sigterm, stream
from kd_det.common.registry import import_options
from kd_det.common.signals import SIGNALS, StopRequested

# Variables that tell a process that it is one of several.
LAUNCHED = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"),
}


def train_teacher(cfg: CfgNode) -> None:
    """Trains the teacher by TEACHER.CONFIG_FILES, unless its file exists. An interrupted training is resumed.

    A ``model.pth`` that no run left is used without training.

    Raises:
        SetupError: TEACHER.WEIGHTS is not the name of a run, TEACHER.CONFIG_FILES is empty, or the training failed.
        StopRequested: the training was stopped by a signal; it has saved its state.
    """
    node = cfg.TEACHER
    path = weights_path(node.WEIGHTS)
    finished = (path.parent / RESULT).is_file() or last_state(path.parent) is None
    if path.is_file() and finished:
        return
    is_name = node.WEIGHTS and path == Path(OUTPUT) / node.WEIGHTS / STUDENT
    if not is_name or not node.CONFIG_FILES:
        raise SetupError(
            f"TEACHER.AUTO_TRAIN: TEACHER.WEIGHTS is {node.WEIGHTS!r} and TEACHER.CONFIG_FILES "
            f"{list(node.CONFIG_FILES)}. Set TEACHER.WEIGHTS to the name of a run, such as 'cifar100/vanilla_res32x4', "
            "and TEACHER.CONFIG_FILES to its configurations, such as ['cifar100/base.yaml']; or train the teacher "
            "yourself and give its model.pth."
        )
    files = list(find_configs(node.CONFIG_FILES, "TEACHER.CONFIG_FILES"))
    command = [sys.executable, "-m", "classification.train", "--resume", *import_options(), "--config-file", *files]
    command += ["STUDENT.NAME", node.NAME, "STUDENT.STEM", node.STEM, "STUDENT.IMAGE_SIZE", str(node.IMAGE_SIZE)]
    command += ["DATA.ROOT", cfg.DATA.ROOT, "OUTPUT_DIR", str(path.parent)]
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


def _single_process() -> dict[str, str]:
    """The environment without the variables of a launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return {name: value for name, value in kept.items() if not name.startswith(("ACCELERATE_", "TORCHELASTIC_"))}
