"""What a run leaves for people and tables: history.json, result.json, and the description in model.pth."""

from __future__ import annotations

import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from accelerate import Accelerator
from fvcore.common.config import CfgNode

from classification.data import Data
from classification.progress import Progress
from classification.step import TrainingStep
from kd_det.common.environment import hardware, peak_memory_mib, versions

HISTORY = "history.json"
RESULT = "result.json"


def about_student(cfg: CfgNode, data: Data, progress: Progress, record: dict[str, Any]) -> dict[str, Any]:
    """What model.pth says about itself beside the weights."""
    return {
        "name": cfg.STUDENT.NAME,
        "num_classes": data.num_classes,
        "class_names": list(data.class_names),
        "data": cfg.DATA.NAME,
        "stem": cfg.STUDENT.STEM,
        "image_size": cfg.STUDENT.IMAGE_SIZE,
        "mean": list(data.mean),
        "std": list(data.std),
        "epoch": progress.epoch + 1,
        "top1": record["top1"],
        "top5": record["top5"],
    }


def describe_run(
    cfg: CfgNode, progress: Progress, accelerator: Accelerator, data: Data, step: TrainingStep
) -> dict[str, Any]:
    """What result.json holds. Accuracies are in percent; ``best`` is chosen on the evaluation data, so optimistic."""
    evaluated = [record for record in progress.history if "top1" in record]
    return {
        "last_top1": evaluated[-1]["top1"],
        "last_top5": evaluated[-1]["top5"],
        "best_top1": max(record["top1"] for record in evaluated),
        "best_top5": max(record["top5"] for record in evaluated),
        "epochs": progress.epoch,
        "seconds_per_epoch": median(progress.seconds[: progress.epoch]),
        "peak_memory_mib": peak_memory_mib(accelerator.device),
        "parameters": sum(p.numel() for p in step.student.parameters()),
        "extra_parameters": sum(p.numel() for p in step.distiller.parameters() if p.requires_grad),
        "train_samples": data.train.samples,
        "seed": cfg.SEED,
        "processes": accelerator.num_processes,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(accelerator.device.type),
        "config": yaml.safe_load(cfg.dump()),
    }


def commit() -> str | None:
    """The commit of the code that runs, with "+" where files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return None
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    return head.stdout.strip() + "+" * bool(changed.strip())
