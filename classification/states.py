"""The states of a run, OUTPUT_DIR/states/EPOCH-STEP: all that it needs to go on.

A state is a folder that has its name once it is whole. Its files are read without running code from them, and only if
each is there and as it was written: ``DIGESTS`` has the sha256 of every other. States of earlier versions, which
Accelerate wrote, have no digests; what of them cannot be read is refused as well.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from accelerate import Accelerator

from classification.random_states import random_states
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically, write_json
from kd_det.common.tensor_files import UnreadableError, read_tensor_file

STATES = "states"
MODEL, OPTIMIZER, SCALER, PROGRESS = "model.safetensors", "optimizer.bin", "scaler.pt", "progress.pt"
DIGESTS = "digests.json"
NAME = re.compile(r"(\d+)-(\d+)")
PARTIAL = re.compile(r"\d+-\d+\.partial")
# What a reader raises for bytes that it was not made for, and PyTorch for contents that do not fit.
MISFITS = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def random_file(process: int) -> str:
    """The name of the file with the random numbers' state of one process."""
    return f"random_states_{process}.pkl"


def largest(accelerator: Accelerator, number: int) -> int:
    """The largest ``number`` of all processes, in all of them."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def save_state(accelerator: Accelerator, output: Path, place: tuple[int, int], contents: Mapping[str, Any]) -> None:
    """Writes a whole state, then removes the older ones. For all processes together.

    No two states of a run have one ``place``, epoch and step, so that none is ever replaced.

    Args:
        contents: what each file but the random numbers' holds, for ``torch.save``; of ``MODEL`` a dict of tensors.

    Raises:
        OSError: a process cannot write its part, a full disk for example. What was written of it is removed.
    """
    final = output / STATES / "{}-{}".format(*place)
    partial = final.with_name(f"{final.name}.partial")

    def begin() -> None:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> None:
        _write(partial / random_file(accelerator.process_index), random_states(accelerator.device))
        if accelerator.is_main_process:
            for name, content in contents.items():
                _write(partial / name, content)

    def finish() -> None:
        if accelerator.is_main_process:
            _publish(partial, final)

    for part in (begin, write, finish):
        _together(accelerator, part, partial)


def _together(accelerator: Accelerator, part: Callable[[], None], partial: Path) -> None:
    """Does ``part`` in every process and waits for all; a failure in one is a failure in each."""
    failure = None
    try:
        part()
    except OSError as error:
        failure = error
    if not largest(accelerator, failure is not None):
        return
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk it would stand in the way of the next attempt
    raise failure or OSError(errno.EIO, "another process could not write its part of the state", str(partial))


def _write(path: Path, content: Any) -> None:
    # To memory first: errors of the disk come from PyTorch's own writer without their number.
    if path.name == MODEL:
        copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in content.items()}
        write_atomically(path, safetensors.torch.save(copies))
        return
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def _publish(partial: Path, final: Path) -> None:
    write_json(partial / DIGESTS, {path.name: _digest(path.read_bytes()) for path in sorted(partial.iterdir())})
    partial.rename(final)
    _remove_others(final)


def _remove_others(state: Path) -> None:
    for other in state.parent.iterdir():
        if other != state and (NAME.fullmatch(other.name) or PARTIAL.fullmatch(other.name)):
            shutil.rmtree(other)


def remove_partial_states(output: Path) -> None:
    """Removes what ``save_state`` left below ``output`` when it was killed. While no other process writes there."""
    for path in (output / STATES).glob("*.partial"):
        if PARTIAL.fullmatch(path.name):
            shutil.rmtree(path)


def place_of(state: Path) -> tuple[int, int]:
    """Epoch and step, from the state's name."""
    epoch, step = state.name.split("-")
    return int(epoch), int(step)


def whole_states(output: Path) -> list[Path]:
    """The states of a run, oldest first."""
    states = output / STATES
    return sorted(filter(_is_named, states.iterdir()), key=place_of) if states.is_dir() else []


def _is_named(path: Path) -> bool:
    return NAME.fullmatch(path.name) is not None


def last_state(output: Path) -> Path | None:
    """The newest whole state of a run; None if there is none."""
    return (whole_states(output) or [None])[-1]


def check_state(state: Path) -> None:
    """Refuses a state of which a file is missing or not as it was written, before anything of it is used.

    Raises:
        SetupError: it names the file and the remedy.
    """
    for name, digest in _digests(state).items():
        if _digest(_bytes(state / name)) != digest:
            raise _unusable(state / name, "is not as it was written")


def _digests(state: Path) -> dict[str, str]:
    if not (state / DIGESTS).exists():
        return {}
    try:
        digests = json.loads(_bytes(state / DIGESTS))
    except (ValueError, RecursionError) as error:
        raise _unusable(state / DIGESTS, "is damaged") from error
    if not isinstance(digests, dict) or not {MODEL, OPTIMIZER, PROGRESS} <= digests.keys():
        raise _unusable(state / DIGESTS, "is damaged")
    return digests


def load_file(path: Path, load: Callable[[Any], Any] = lambda content: content) -> Any:
    """Reads a file of a state and gives what it holds to ``load``; returns what that returns.

    Raises:
        SetupError: the file cannot be read, or ``load`` cannot use what it holds.
    """
    content = _bytes(path)
    try:
        if path.name == MODEL:
            return load(safetensors.torch.load(content))
        return load(read_tensor_file(io.BytesIO(content)))
    except SetupError:
        raise
    except (*MISFITS, safetensors.SafetensorError, UnreadableError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _unusable(path, f"cannot be used: {reason}") from error


def read_progress(state: Path) -> dict[str, Any]:
    """What ``PROGRESS`` of a state holds."""
    return load_file(state / PROGRESS)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _unusable(path, "is missing") from error
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _unusable(path: Path, what: str) -> SetupError:
    state = path.parent
    older = [other for other in whole_states(state.parent.parent) if place_of(other) < place_of(state)]
    remedy = "There is no older state: start anew with --overwrite, or in another OUTPUT_DIR"
    if older:
        remedy = f"Remove the folder {str(state)!r} to go on from the older {older[-1].name}"
    return SetupError(f"--resume: {str(path)!r} {what}. {remedy}.")
