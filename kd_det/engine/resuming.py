"""Resuming a run: what its last checkpoint must contain, and which settings may have changed since."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_det.checkpoint import read_checkpoint
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically

logger = logging.getLogger(__name__)

TAG = "last_checkpoint"

# Patterns of settings that may differ from the checkpoint's run, because no saved state depends on them.
CHANGEABLE = (
    "OUTPUT_DIR", "VIS_PERIOD", "CUDNN_BENCHMARK", "FLOAT32_PRECISION", "TEST.*", "DATALOADER.NUM_WORKERS",
    "DATASETS.TEST", "DATASETS.COCO_JSON", "DATASETS.*_TEST", "INPUT.*_TEST", "MODEL.*_TEST", "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "SOLVER.BASE_LR", "SOLVER.BASE_LR_END", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.GAMMA", "SOLVER.STEPS",
    "SOLVER.NUM_DECAYS", "SOLVER.RESCALE_INTERVAL", "SOLVER.WARMUP_*", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH", "SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.CLIP_GRADIENTS.*",
    # The teacher's files may have moved; its classes and its other settings must be the same.
    "KD.TEACHER.CONFIG_FILE", "KD.TEACHER.WEIGHTS", "KD.TEACHER.DTYPE", "KD.TEACHER.STORED", "KD.STORED.FRACTION",
    "KD.*.WEIGHT", "KD.*.ALPHA", "KD.*.BETA", "KD.*.GAMMA", "KD.*.TEMPERATURE", "KD.*.THRESHOLD",
    "KD.*.COMPLEMENTARY_WEIGHT", "KD.SDD.PROPOSALS", "KD.UNLABELED.*",
)  # fmt: skip


def last_checkpoint(folder: str) -> str | None:
    """The path of the checkpoint that a run in ``folder`` resumes from; None if there is none yet.

    Raises:
        SetupError: the file ``last_checkpoint`` does not name a file in its folder.
    """
    tag = Path(folder, TAG)
    if not tag.is_file():
        return None
    name = tag.read_text(errors="replace").strip()
    if not name or name != os.path.basename(name) or not Path(folder, name).is_file():
        raise SetupError(f"--resume: {str(tag)!r} names {name!r}, which is not a file in its folder. {_remedy(folder)}")
    return os.path.join(folder, name)


@contextmanager
def new_run(folder: str) -> Iterator[None]:
    """Starts a new run in ``folder``: from now on --resume does not continue an older run there.

    If the context raises ``SetupError``, before the new run has begun, the older run can still be resumed.
    """
    tag = Path(folder, TAG)
    old = tag.read_bytes() if tag.is_file() else None
    checkpoints = sorted(path.name for path in Path(folder).glob("*.pth"))
    if checkpoints:
        logger.warning(
            "OUTPUT_DIR %r has an earlier run, whose last checkpoint is %s. This run starts anew and overwrites "
            "checkpoints of the same names; --resume would have continued the earlier one. There are %d: %s",
            folder, old.decode(errors="replace") if old else "unknown", len(checkpoints), ", ".join(checkpoints[-10:]),
        )  # fmt: skip
    tag.unlink(missing_ok=True)
    try:
        yield
    except SetupError:
        if old is not None:
            write_atomically(tag, old)
        raise


def config_leaves(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Every setting under its dotted key, with tuples as lists."""
    leaves: dict[str, Any] = {}
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            leaves.update(config_leaves(value, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = _plain(value)
    return leaves


def compare_settings(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Logs the settings that have changed since the checkpoint. Keys that only one side has are ignored.

    Raises:
        SetupError: a changed setting is one that the checkpoint's state depends on.
    """
    differ = [key for key in ours if key in saved and saved[key] != ours[key]]
    refused = [key for key in differ if not _may_change(key, saved[key], ours[key])]
    for key in differ:
        verdict = "which is refused" if key in refused else "from here on"
        logger.warning("--resume: %s was %r and is %r, %s", key, saved[key], ours[key], verdict)
    if refused:
        named = "; ".join(f"{key} was {saved[key]!r} and is {ours[key]!r}" for key in refused[:5])
        more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise SetupError(
            f"--resume: {named}{more}. Restore the setting, or start a new run in another OUTPUT_DIR, with the "
            "checkpoint as MODEL.WEIGHTS if it fits."
        )


def _may_change(key: str, saved: Any, ours: Any) -> bool:
    if key == "KD.TEACHER.STORED" and not (saved and ours):  # with and without stored knowledge are two methods
        return False
    return any(fnmatchcase(key, pattern) for pattern in CHANGEABLE)


def read_resumable(path: str, cfg: CfgNode, model: nn.Module, terms: nn.Module | None, optimizer: Optimizer) -> Any:
    """The checkpoint at ``path``, if it has the whole state of this run.

    Args:
        path: of the checkpoint.
        cfg: this run's configuration.
        model, optimizer: will load the checkpoint; not changed here.
        terms: the KD terms, which will load it too; None: the model has none.

    Raises:
        SetupError: the file cannot be read, is of a different configuration, or lacks a part of the state.
    """
    checkpoint = read_checkpoint(path, "--resume:")
    state = checkpoint.get("trainer")
    if not isinstance(state, dict):
        raise _refused(path, ["it has no training state (iteration, schedule, optimiser)"])
    if isinstance(state.get("config"), dict):
        compare_settings(state["config"], config_leaves(cfg))
    else:
        logger.warning("--resume: %s has no configuration to compare with; it is from an older version", path)
    faults = [
        *_progress_faults(state),
        *_weight_faults("", model.state_dict(), checkpoint.get("model")),
        *_optimizer_faults(optimizer, state.get("_trainer")),
    ]
    if terms is not None:
        faults += _weight_faults("kd_terms.", terms.state_dict(), checkpoint.get("kd_terms"))
    if faults:
        raise _refused(path, faults)
    return checkpoint


def set_learning_rate(optimizer: Optimizer, scheduler: LRScheduler, base: list[float]) -> None:
    """Replaces the learning rates of a checkpoint with ``base``, one for each parameter group."""
    scheduler.base_lrs = list(base)
    for group, initial, current in zip(optimizer.param_groups, base, scheduler.get_lr(), strict=True):
        group["initial_lr"], group["lr"] = initial, current


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _progress_faults(state: Mapping[str, Any]) -> list[str]:
    schedule = state.get("hooks", {}).get("LRScheduler", {}) if isinstance(state.get("hooks"), dict) else {}
    numbers = (state.get("iteration"), schedule.get("last_epoch") if isinstance(schedule, dict) else None)
    if not all(isinstance(number, int) for number in numbers):
        return ["it has no iteration or no state of the learning rate's schedule"]
    return []


def _weight_faults(prefix: str, ours: Mapping[str, Tensor], saved: Any) -> list[str]:
    if not isinstance(saved, Mapping):
        return [f"it has no {prefix.rstrip('.') or 'model'}"]
    faults = []
    for name, value in ours.items():
        if name not in saved:
            # Detectron2's older checkpoints lack this count, which is not used.
            faults += [] if name.endswith("num_batches_tracked") else [f"{prefix}{name} is missing"]
        elif not isinstance(saved[name], Tensor) or saved[name].shape != value.shape:
            shape = tuple(getattr(saved[name], "shape", ()))
            faults.append(f"{prefix}{name} is {shape} in the file and {tuple(value.shape)} in the model")
    return faults + [f"{prefix}{name} is unknown to the model" for name in saved if prefix and name not in ours]


def _optimizer_faults(optimizer: Optimizer, saved: Any) -> list[str]:
    state = saved.get("optimizer") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        return ["it has no state of the optimiser"]
    groups, entries = state.get("param_groups"), state["state"]
    if not isinstance(groups, list) or _sizes(groups) != _sizes(optimizer.param_groups):
        return ["its optimiser is for other parameters"]
    if not entries and any(group.get("momentum") for group in optimizer.param_groups):
        return ["its optimiser has no momentum"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        entry = entries.get(number, {})
        momentum = entry.get("momentum_buffer") if isinstance(entry, dict) else None
        if momentum is not None and getattr(momentum, "shape", None) != parameter.shape:
            return ["its optimiser's momentum does not have the shapes of the parameters"]
    return []


def _sizes(groups: list[Any]) -> list[int]:
    return [len(group.get("params", ())) if isinstance(group, dict) else -1 for group in groups]


def _refused(path: str, faults: list[str]) -> SetupError:
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return SetupError(
        f"--resume: the run cannot continue from {path!r}: {'; '.join(faults[:5])}{more}. "
        f"{_remedy(os.path.dirname(path))}"
    )


def _remedy(folder: str) -> str:
    names = sorted(path.name for path in Path(folder).glob("*.pth"))
    known = f"the checkpoints there are {', '.join(names[-5:])}" if names else "there is no checkpoint"
    return f"Write another one's name into {os.path.join(folder, TAG)!r} ({known}), or start anew without --resume."
