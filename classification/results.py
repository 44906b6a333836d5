"""What a run measures and reports: accuracy, progress, history.json, result.json, the description in model.pth."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from classification.data import Batch, Data
from classification.step import TrainingStep
from kd_det.common.environment import hardware, peak_memory_mib, versions

HISTORY = "history.json"
RESULT = "result.json"


@dataclass
class Progress:
    """A run's position and its figures. It is part of every state, so that a resumed run reports the same figures.

    Attributes:
        epoch: the current epoch, from 0.
        step: steps of the current epoch so far.
        steps: steps of the run so far.
        samples: samples of the current epoch so far, in this process.
        sums: sums over these samples of each loss and of correct predictions, float64.
        history: one record for each epoch.
        seconds: the training time of each epoch; the last entry is that of the current epoch so far.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    samples: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=lambda: [0.0])

    def add(self, losses: dict[str, Tensor], correct: Tensor, samples: int) -> None:
        """Adds one micro-batch: its mean losses, its number of correct predictions, and its size."""
        for name, value in {**{name: loss * samples for name, loss in losses.items()}, "correct": correct}.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.samples += samples

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Adds the epoch's record and begins the next epoch."""
        self.history.append(record)
        self.epoch += 1
        self.step = self.samples = 0
        self.sums = {}
        self.seconds.append(0.0)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Progress:
        """The inverse of ``state``, with the sums on ``device``."""
        progress = cls(**state)
        progress.sums = {name: value.to(device) for name, value in progress.sums.items()}
        return progress


@torch.inference_mode()
def measure_accuracy(
    model: nn.Module, batches: Iterable[Batch], num_classes: int, device: torch.device
) -> dict[str, float]:
    """The accuracy of ``model`` in percent: {"top1": ..., "top5": ...}. Its training mode is restored.

    Args:
        model: maps images (B, 3, H, W) to logits (B, C).
        batches: this process's share of the samples. torchmetrics adds up the counts of all processes.
        num_classes: C. With fewer than five classes, top5 counts all of them.
        device: the device of the samples.
    """
    metrics = MetricCollection(
        {
            name: MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            for name, k in (("top1", 1), ("top5", 5))
        }
    ).to(device)
    was_training = model.training
    model.eval()
    for batch in batches:
        metrics.update(model(batch.images).float(), batch.labels)
    model.train(was_training)
    # torchmetrics divides in float32: further digits would be rounding errors.
    return {name: round(100 * float(value), 4) for name, value in metrics.compute().items()}


def describe_student(cfg: CfgNode, data: Data, progress: Progress, record: dict[str, Any]) -> dict[str, Any]:
    """What model.pth contains besides the weights."""
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
    """The content of result.json. Accuracies are in percent. ``best`` is chosen on the evaluation data: optimistic."""
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
        "extra_parameters": step.extra_parameters,
        "train_samples": data.train.samples,
        "seed": cfg.SEED,
        "processes": accelerator.num_processes,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(accelerator.device.type),
        "config": yaml.safe_load(cfg.dump()),
    }


def commit() -> str | None:
    """The commit of the running code, with "+" if files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return None
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    return head.stdout.strip() + "+" * bool(changed.strip())
