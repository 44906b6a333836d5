"""Going on where a run was: what is saved beside Accelerate's state, and what must be the same again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch.optim.lr_scheduler import LRScheduler

from classification.checkpoint import STATES, STUDENT, last_state, read_progress
from classification.progress import Progress
from classification.results import HISTORY, RESULT
from kd_det.common.errors import SetupError

# What changes nothing but when and where results appear.
FREE = ("OUTPUT_DIR", "DATA.ROOT", "DATA.WORKERS", "DATA.EVAL_BATCH_SIZE", "TEACHER.AUTO_TRAIN", "WANDB")
FREE += ("SOLVER.CHECKPOINT_PERIOD", "TEACHER.CONFIG_FILES")


def find_state(output: Path, accelerator: Accelerator, *, resume: bool) -> Path | None:
    """The state to go on from; None for a new run, whose folder is cleared of an old one's results."""
    state = last_state(output) if resume else None
    accelerator.wait_for_everyone()
    if state is None and accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(output / STATES, ignore_errors=True)
        for name in (STUDENT, RESULT, HISTORY):
            (output / name).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return state


def contents(cfg: CfgNode, progress: Progress, accelerator: Accelerator, scheduler: LRScheduler) -> dict[str, Any]:
    """What a state holds beside Accelerate's."""
    return {
        "progress": progress.state(),
        "scheduler": scheduler.state_dict(),
        "config": dict(_leaves(cfg)),
        "processes": accelerator.num_processes,
    }


def restore(state: Path, cfg: CfgNode, accelerator: Accelerator, scheduler: LRScheduler) -> Progress:
    """Loads ``state`` into what the accelerator prepared and the scheduler; returns the progress.

    Raises:
        SetupError: the run was started with another configuration or number of processes.
    """
    saved = read_progress(state)
    ours = dict(_leaves(cfg))
    differ = [key for key in ours if key not in FREE and saved["config"].get(key) != ours[key]]
    if differ:
        named = "; ".join(f"{key} was {saved['config'].get(key)} and is {ours[key]}" for key in differ[:3])
        raise SetupError(f"--resume: {named}. Set it as it was, or start anew in another OUTPUT_DIR.")
    if saved["processes"] != accelerator.num_processes:
        raise SetupError(
            f"--resume: the run had {saved['processes']} processes, now there are {accelerator.num_processes}; "
            "launch as many as before."
        )
    accelerator.load_state(str(state))
    scheduler.load_state_dict(saved["scheduler"])
    return Progress.from_state(saved["progress"], accelerator.device)


def _leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, repr(value)
