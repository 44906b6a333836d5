"""What OUTPUT_DIR has: ``model.pth``, the student alone after the last evaluated epoch; with SOLVER.SAVE_BEST
``model_best.pth``, that of the best; and the states that ``--resume`` continues from.

The files of a state are written and read in ``states``.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from classification import states
from classification.composition import OUTPUT
from classification.models import ClassificationModel
from classification.results import HISTORY, RESULT, Progress
from classification.states import last_state, load_file, place_of, random_file, set_random_states
from kd_det.common.config_files import leaves
from kd_det.common.errors import SetupError
from kd_det.common.files import remove_temporary_files, write_atomically
from kd_det.common.tensor_files import UnreadableError, read_tensor_file

STUDENT, BEST = "model.pth", "model_best.pth"
# Keys that may change between a run and its resumption: they only affect when and where results appear.
FREE = {
    *("OUTPUT_DIR", "WANDB", "DATA.ROOT", "DATA.WORKERS", "DATA.EVAL_BATCH_SIZE"),
    *("TEACHER.AUTO_TRAIN", "TEACHER.CONFIG_FILES", "SOLVER.CHECKPOINT_PERIOD"),
}


def save_student(path: Path, student: nn.Module, description: Mapping[str, Any]) -> None:
    """Writes {"model": state dict, **description}. ``description`` has plain values: name, num_classes, data, ...

    A ``ClassificationModel`` adds its ``saved_settings``.
    """
    buffer = io.BytesIO()
    settings = student.saved_settings() if isinstance(student, ClassificationModel) else {}
    torch.save({"model": student.state_dict(), **description, **settings}, buffer)
    write_atomically(path, buffer.getbuffer())


def read_student(path: Path, key: str) -> dict[str, Any]:
    """Reads a file that ``save_student`` wrote. No code in it is run.

    Args:
        key: the configuration key that names the file, for messages.

    Raises:
        SetupError: there is no such file, it is truncated, or it has anything but tensors and plain containers.
    """
    if not path.is_file():
        raise SetupError(f"{key}: there is no file {str(path)!r}. Give the path of a model.pth.")
    try:
        content = read_tensor_file(path)
    except UnreadableError as error:
        raise SetupError(
            f"{key}: {str(path)!r} cannot be read: {error}. It is truncated, or not a checkpoint of tensors; "
            "train or fetch it again."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise SetupError(f'{key}: {str(path)!r} has no "model" with the weights; give a model.pth of this project.')
    return content


def weights_path(weights: str) -> Path:
    """The path that STUDENT.WEIGHTS or TEACHER.WEIGHTS means: the name of a run means output/NAME/model.pth."""
    return Path(weights) if Path(weights).suffix else Path(OUTPUT) / weights / STUDENT


def check_folder(cfg: CfgNode, *, resume: bool, overwrite: bool) -> None:
    """Checks that a run in OUTPUT_DIR does not replace results unasked.

    Raises:
        SetupError: it would. The message says what is there.
    """
    output = Path(cfg.OUTPUT_DIR)
    found = describe_folder(output)
    if found and not (resume or overwrite):
        raise SetupError(
            f"OUTPUT_DIR {str(output)!r} has {found}. Give --resume to continue it, --overwrite to delete it and "
            "start again, or another OUTPUT_DIR."
        )
    if found and resume and last_state(output) is None:
        raise SetupError(
            f"--resume: OUTPUT_DIR {str(output)!r} has {found}, but no state to resume from. Give --overwrite to "
            "delete it and start again, or another OUTPUT_DIR."
        )
    for key in ("TEACHER", "STUDENT"):
        weights = cfg[key].WEIGHTS
        ours = [(output / name).resolve() for name in (STUDENT, BEST)]
        if weights and overwrite and weights_path(weights).resolve() in ours:
            raise SetupError(
                f"{key}.WEIGHTS {weights!r} is a model of OUTPUT_DIR {str(output)!r}, which the run replaces. "
                "Give another OUTPUT_DIR."
            )


def describe_folder(output: Path) -> str:
    """What a run left in ``output``; "" for nothing."""
    state = last_state(output)
    if (output / RESULT).exists():
        return "a finished run"
    if state is not None:
        epoch, step = place_of(state)
        return f"an unfinished run, in epoch {epoch + 1} after {step} steps"
    if (output / STUDENT).exists():
        return f"a {STUDENT} without a run's state"
    return f"a {HISTORY} without a run's state" if (output / HISTORY).exists() else ""


def remove_leftovers(output: Path) -> None:
    """Removes half-written files of killed runs from ``output``. Call it while you have the folder's lock."""
    remove_temporary_files(output)
    states.remove_partial_states(output)


def find_state(cfg: CfgNode, accelerator: Accelerator, *, resume: bool, overwrite: bool = False) -> Path | None:
    """The state to resume from; None for a new run. ``overwrite`` deletes the old run."""
    check_folder(cfg, resume=resume, overwrite=overwrite)
    accelerator.wait_for_everyone()  # every process has looked
    output = Path(cfg.OUTPUT_DIR)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        if overwrite:
            _clear(output)
    accelerator.wait_for_everyone()
    return last_state(output) if resume else None


def _clear(output: Path) -> None:
    if (output / states.STATES).is_dir():
        shutil.rmtree(output / states.STATES)
    for name in (STUDENT, BEST, RESULT, HISTORY):
        (output / name).unlink(missing_ok=True)


def state_files(
    cfg: CfgNode,
    progress: Progress,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
) -> dict[str, Any]:
    """The content of each file of a state, for ``states.save_state``."""
    files = {
        states.MODEL: model.state_dict(),
        states.OPTIMIZER: optimizer.state_dict(),
        states.PROGRESS: {
            "progress": progress.state(),
            "scheduler": scheduler.state_dict(),
            "config": _config_values(cfg),
            "processes": accelerator.num_processes,
        },
    }
    return files if accelerator.scaler is None else {**files, states.SCALER: accelerator.scaler.state_dict()}


def restore(
    state: Path,
    cfg: CfgNode,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
) -> Progress:
    """Loads ``state`` into model, optimizer, scheduler and the random number generators; returns the progress.

    Raises:
        SetupError: the run had a different configuration or number of processes, or a file of the state is missing or
            damaged.
    """
    states.check_state(state)
    load_file(state / states.PROGRESS, lambda saved: _check_same(saved, cfg, accelerator.num_processes))
    load_file(state / states.MODEL, model.load_state_dict)
    load_file(state / states.OPTIMIZER, optimizer.load_state_dict)
    if accelerator.scaler is not None:
        load_file(state / states.SCALER, accelerator.scaler.load_state_dict)

    def take(saved: dict[str, Any]) -> Progress:
        # Without the epochs of its steps: the configuration has them, and the reader admits no Counter.
        scheduler.load_state_dict({key: value for key, value in saved["scheduler"].items() if key != "milestones"})
        return Progress.from_state(saved["progress"], accelerator.device)

    progress = load_file(state / states.PROGRESS, take)
    own = state / random_file(accelerator.process_index)
    # Last, since nothing above may draw from them.
    load_file(own, lambda saved: set_random_states(saved, accelerator.device))
    return progress


def _check_same(saved: dict[str, Any], cfg: CfgNode, processes: int) -> None:
    ours = _config_values(cfg)
    differ = [key for key in ours if key not in FREE and saved["config"].get(key) != ours[key]]
    if differ:
        named = "; ".join(f"{key} was {saved['config'].get(key)} and is {ours[key]}" for key in differ[:3])
        raise SetupError(f"--resume: {named}. Set the old value, or start again in another OUTPUT_DIR.")
    if saved["processes"] != processes:
        raise SetupError(
            f"--resume: the run had {saved['processes']} processes, now there are {processes}; launch equally many."
        )


def _config_values(cfg: CfgNode) -> dict[str, str]:
    return {key: repr(value) for key, value in leaves(cfg)}
