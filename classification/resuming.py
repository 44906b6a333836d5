"""What OUTPUT_DIR holds already, and going on where a run was: what is saved, and what must be the same again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from classification import states
from classification.checkpoint import STUDENT
from classification.progress import Progress
from classification.random_states import set_random_states
from classification.results import HISTORY, RESULT
from classification.states import last_state, load_file, place_of, random_file
from classification.teacher import weights_path
from kd_det.common.errors import SetupError
from kd_det.common.files import remove_temporary_files

# What changes nothing but when and where results appear.
FREE = ("OUTPUT_DIR", "DATA.ROOT", "DATA.WORKERS", "DATA.EVAL_BATCH_SIZE", "TEACHER.AUTO_TRAIN", "WANDB")
FREE += ("SOLVER.CHECKPOINT_PERIOD", "TEACHER.CONFIG_FILES")


def check_folder(cfg: CfgNode, *, resume: bool, overwrite: bool) -> None:
    """Refuses an OUTPUT_DIR whose results a run would replace without being told to.

    Raises:
        SetupError: it says what is there.
    """
    output = Path(cfg.OUTPUT_DIR)
    found = describe_folder(output)
    if found and not (resume or overwrite):
        raise SetupError(
            f"OUTPUT_DIR {str(output)!r} has {found}. Give --resume to go on with it, --overwrite to delete it and "
            "start anew, or another OUTPUT_DIR."
        )
    if found and resume and last_state(output) is None:
        raise SetupError(
            f"--resume: OUTPUT_DIR {str(output)!r} has {found}, but no state to go on from. Give --overwrite to delete "
            "it and start anew, or another OUTPUT_DIR."
        )
    for key in ("TEACHER", "STUDENT"):
        weights = cfg[key].WEIGHTS
        if weights and overwrite and weights_path(weights).resolve() == (output / STUDENT).resolve():
            raise SetupError(
                f"{key}.WEIGHTS {weights!r} is the {STUDENT} of OUTPUT_DIR {str(output)!r} itself, which the run "
                "replaces. Give another OUTPUT_DIR."
            )


def describe_folder(output: Path) -> str:
    """What a run left in ``output``; "" if nothing."""
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
    """Removes what killed runs left half-written in ``output``. To be called under its lock."""
    remove_temporary_files(output)
    states.remove_partial_states(output)


def find_state(cfg: CfgNode, accelerator: Accelerator, *, resume: bool, overwrite: bool = False) -> Path | None:
    """The state to go on from; None for a new run, which ``overwrite`` makes room for."""
    check_folder(cfg, resume=resume, overwrite=overwrite)
    accelerator.wait_for_everyone()  # all have looked
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
    for name in (STUDENT, RESULT, HISTORY):
        (output / name).unlink(missing_ok=True)


def contents(
    cfg: CfgNode,
    progress: Progress,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
) -> dict[str, Any]:
    """What the files of a state hold, see ``states.save_state``."""
    files = {
        states.MODEL: model.state_dict(),
        states.OPTIMIZER: optimizer.state_dict(),
        states.PROGRESS: {
            "progress": progress.state(),
            "scheduler": scheduler.state_dict(),
            "config": dict(_leaves(cfg)),
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
    """Loads ``state`` into model, optimizer and scheduler, and the random numbers; returns the progress.

    Raises:
        SetupError: the run was started with another configuration or number of processes, or a file of the state is
            missing or damaged.
    """
    states.check_state(state)
    load_file(state / states.PROGRESS, lambda saved: _check_same(saved, cfg, accelerator.num_processes))
    load_file(state / states.MODEL, model.load_state_dict)
    load_file(state / states.OPTIMIZER, optimizer.load_state_dict)
    if accelerator.scaler is not None:
        load_file(state / states.SCALER, accelerator.scaler.load_state_dict)

    def take(saved: dict[str, Any]) -> Progress:
        # Without the epochs of its steps: they are the configuration's, and a reader of plain values has no Counter.
        scheduler.load_state_dict({key: value for key, value in saved["scheduler"].items() if key != "milestones"})
        return Progress.from_state(saved["progress"], accelerator.device)

    progress = load_file(state / states.PROGRESS, take)
    own = state / random_file(accelerator.process_index)
    load_file(own, lambda saved: set_random_states(saved, accelerator.device))  # last: nothing above may draw from them
    return progress


def _check_same(saved: dict[str, Any], cfg: CfgNode, processes: int) -> None:
    ours = dict(_leaves(cfg))
    differ = [key for key in ours if key not in FREE and saved["config"].get(key) != ours[key]]
    if differ:
        named = "; ".join(f"{key} was {saved['config'].get(key)} and is {ours[key]}" for key in differ[:3])
        raise SetupError(f"--resume: {named}. Set it as it was, or start anew in another OUTPUT_DIR.")
    if saved["processes"] != processes:
        raise SetupError(
            f"--resume: the run had {saved['processes']} processes, now there are {processes}; launch as many as "
            "before."
        )


def _leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, repr(value)
