"""The states of a run, OUTPUT_DIR/states/EPOCH-STEP: everything that ``--resume`` needs.

A state is a folder, which gets its name when it is complete. Its files are read without running code in them. They are
used only if every file is there and unchanged: ``DIGESTS`` has the sha256 of each. States of earlier versions, written
by Accelerate, have no digests; a file of them that cannot be read is refused as well.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from accelerate import Accelerator

from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically, write_json
from kd_det.common.tensor_files import UnreadableError, read_tensor_file

STATES = "states"
MODEL, OPTIMIZER, SCALER, PROGRESS = "model.safetensors", "optimizer.bin", "scaler.pt", "progress.pt"
DIGESTS = "digests.json"
NAME = re.compile(r"(\d+)-(\d+)")
PARTIAL = re.compile(r"\d+-\d+\.partial")
NUMPY_WORDS = 624  # of NumPy's generator, 32 bits each
# What readers raise for damaged bytes, and PyTorch for contents that do not fit.
MISFITS = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def random_file(process: int) -> str:
    """The name of the file with the states of one process's random number generators."""
    return f"random_states_{process}.pkl"


def largest(accelerator: Accelerator, number: int) -> int:
    """The largest ``number`` of all processes, returned in each of them."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def save_state(accelerator: Accelerator, output: Path, place: tuple[int, int], contents: Mapping[str, Any]) -> None:
    """Writes a complete state, then removes the older ones. All processes call it together.

    Args:
        accelerator: the processes.
        output: the run's folder.
        place: epoch and step. No two states of a run have the same place, so that none is ever replaced.
        contents: the content of each file but those of the random number generators: for ``MODEL`` a dict of tensors,
            for the others anything that ``torch.save`` takes.

    Raises:
        OSError: a process cannot write its part, for example because the disk is full. The unfinished state is removed.
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
    """Calls ``part`` in every process and waits for all. A failure in one process is raised in each."""
    failure: OSError | None = None
    try:
        part()
    except OSError as error:
        failure = error
    if not largest(accelerator, failure is not None):
        return
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk it would take the space of the next attempt
    raise failure or OSError(errno.EIO, "another process could not write its part of the state", str(partial))


def _write(path: Path, content: Any) -> None:
    # To memory first: PyTorch's own writer raises disk errors without their number.
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
    """Removes what a killed ``save_state`` left below ``output``. Call it while no other process writes there."""
    for path in (output / STATES).glob("*.partial"):
        if PARTIAL.fullmatch(path.name):
            shutil.rmtree(path)


def place_of(state: Path) -> tuple[int, int]:
    """Epoch and step, from the name of the state."""
    epoch, step = state.name.split("-")
    return int(epoch), int(step)


def whole_states(output: Path) -> list[Path]:
    """The complete states of a run, oldest first."""
    states = output / STATES
    return sorted(filter(_is_named, states.iterdir()), key=place_of) if states.is_dir() else []


def _is_named(path: Path) -> bool:
    return NAME.fullmatch(path.name) is not None


def last_state(output: Path) -> Path | None:
    """The newest complete state of a run; None if there is none."""
    found = whole_states(output)
    return found[-1] if found else None


def check_state(state: Path) -> None:
    """Checks, before a state is used, that every file of it is there and unchanged.

    Raises:
        SetupError: a file is missing or damaged. The message names it and the remedy.
    """
    for name, digest in _digests(state).items():
        if _digest(_bytes(state / name)) != digest:
            raise _unusable(state / name, "is damaged: its sha256 differs")


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
    """Returns ``load`` of the content of a state's file.

    Raises:
        SetupError: the file cannot be read, or ``load`` fails.
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
    """The content of ``PROGRESS`` of a state."""
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
    remedy = "There is no older state: start again with --overwrite, or in another OUTPUT_DIR"
    if older:
        remedy = f"Remove the folder {str(state)!r} to resume from the older {older[-1].name}"
    return SetupError(f"--resume: {str(path)!r} {what}. {remedy}.")


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of this process's generators: Python's, NumPy's, PyTorch's, and those of ``device`` if it has any.

    They are plain values and tensors, under the names that Accelerate gives them.
    """
    numpy = np.random.get_state(legacy=False)
    states: dict[str, Any] = {
        "random_state": random.getstate(),
        "numpy_random_seed": (
            numpy["bit_generator"],
            torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            numpy["state"]["pos"],
            numpy["has_gauss"],
            numpy["gauss"],
        ),
        "torch_manual_seed": torch.get_rng_state(),
    }
    module = _device_module(device)
    if module is not None:
        states[_device_key(device)] = module.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Restores what ``random_states`` returned.

    Raises:
        ValueError, TypeError, RuntimeError, LookupError: ``states`` is something else.
    """
    name, words, *rest = states["numpy_random_seed"]
    np.random.set_state((name, _words(words), *rest))
    random.setstate(states["random_state"])
    torch.set_rng_state(states["torch_manual_seed"])
    module = _device_module(device)
    if module is not None:
        module.set_rng_state_all(states[_device_key(device)])


def _device_module(device: torch.device) -> Any:
    module = None if device.type == "cpu" else torch.get_device_module(device)
    return module if hasattr(module, "get_rng_state_all") else None


def _device_key(device: torch.device) -> str:
    return f"torch_{device.type}_manual_seed"


def _words(saved: Any) -> np.ndarray:
    words = np.asarray(saved)  # a tensor; an array in states of earlier versions
    if words.shape != (NUMPY_WORDS,):
        raise ValueError(f"NumPy's state has the shape {words.shape}, not {(NUMPY_WORDS,)}")
    return words.astype(np.uint32)
