"""The student alone, for use: written whole or not at all, and read without running code from it.

What a run needs to go on is in ``states``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically
from kd_det.common.tensor_files import UnreadableError, check_weights, read_tensor_file

STUDENT = "model.pth"


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
