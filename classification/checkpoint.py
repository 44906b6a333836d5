"""Two kinds of checkpoints: the student alone, for use, and all that a run needs to go on.

Both are written whole or not at all, and read without running code from them.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically
from kd_det.common.tensor_files import UnreadableError, check_weights, read_tensor_file

STUDENT = "model.pth"
STATES = "states"
PROGRESS = "progress.pt"
NAME = re.compile(r"\d+-\d+")


def save_student(path: Path, student: nn.Module, about: Mapping[str, Any]) -> None:
    """Writes {"model": state dict, **about}; ``about`` is plain values: name, num_classes, data, ..."""
    buffer = io.BytesIO()
    torch.save({"model": student.state_dict(), **about}, buffer)
    write_atomically(path, buffer.getbuffer())


def read_student(path: Path, key: str) -> dict[str, Any]:
    """What ``save_student`` wrote.

    Args:
        key: the configuration key that named the file, for messages.

    Raises:
        SetupError: there is no such file, it is truncated, or it holds anything but tensors and plain containers.
    """
    if not path.is_file():
        raise SetupError(f"{key}: no file {str(path)!r}. Give the path of a model.pth.")
    try:
        content = read_tensor_file(path)
    except UnreadableError as error:
        raise SetupError(
            f"{key}: {str(path)!r} cannot be read: {error}. It is truncated, or no checkpoint of tensors; "
            "train or fetch it again."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise SetupError(f'{key}: {str(path)!r} has no "model" with the weights; give a model.pth of this project.')
    return content


def load_strictly(model: nn.Module, path: Path, state: Mapping[str, Tensor], key: str) -> None:
    """Loads ``state``, which must have the model's entries and no other, in the same shapes, all finite.

    Raises:
        SetupError: it has not; the first entries that differ are named.
    """
    state = check_weights(dict(state), f"{key}: {str(path)!r}")
    ours = model.state_dict()
    faults = [f"{name} is not in the file" for name in ours if name not in state]
    faults += [f"{name} is not in the model" for name in state if name not in ours]
    faults += [
        f"{name} is {tuple(value.shape)} in the model and {tuple(state[name].shape)} in the file"
        for name, value in ours.items()
        if name in state and state[name].shape != value.shape
    ]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise SetupError(f"{key}: {str(path)!r} is of another model: {'; '.join(faults[:3])}{more}.")
    model.load_state_dict(state)


def save_state(accelerator: Accelerator, output: Path, place: tuple[int, int], progress: Mapping[str, Any]) -> None:
    """Writes OUTPUT/states/EPOCH-STEP: Accelerate's state and ``progress`` (tensors, plain values); drops older ones.

    A folder of that name is whole: it is written under another one first. No two states of a run have one ``place``,
    epoch and step, so that none is ever replaced.
    """
    states = output / STATES
    name = "{}-{}".format(*place)
    partial = states / f"{name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        torch.save(dict(progress), partial / PROGRESS)
        _flush(partial)
        final = states / name
        partial.rename(final)
        for other in states.iterdir():
            if other != final:
                shutil.rmtree(other)
    accelerator.wait_for_everyone()


def last_state(output: Path) -> Path | None:
    """The newest whole state of a run; None if there is none."""
    states = output / STATES
    whole = [path for path in states.iterdir() if NAME.fullmatch(path.name)] if states.is_dir() else []
    return max(whole, key=lambda path: tuple(map(int, path.name.split("-"))), default=None)


def read_progress(state: Path) -> dict[str, Any]:
    """The ``progress`` that ``save_state`` wrote."""
    return torch.load(state / PROGRESS, map_location="cpu", weights_only=True)


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
