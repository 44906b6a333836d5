"""Reads what Detectron2 wrote about a training run."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import torch

AP = "bbox/AP"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.json`` by iteration; of lines repeated after a resumption the later counts."""
    by_iteration: dict[int, dict[str, Any]] = {}
    for line in Path(path).read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut off by an interruption
            continue
        by_iteration.setdefault(entry["iteration"], {}).update(entry)
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def average_precision(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """COCO AP of the last evaluation, and the best AP of all evaluations, in percent.

    Raises:
        ValueError: there was no evaluation.
    """
    evaluations = [entry for entry in metrics if AP in entry]
    if not evaluations:
        raise ValueError("no evaluation in metrics.json; set TEST.EVAL_PERIOD above 0")
    last = evaluations[-1]
    return {
        "AP": last[AP],
        "AP50": last["bbox/AP50"],
        "AP75": last["bbox/AP75"],
        "best_AP": max(entry[AP] for entry in evaluations),
    }


def cost(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of an iteration, without waiting for data, and the peak of memory in MiB."""
    seconds = [entry["time"] - entry.get("data_time", 0.0) for entry in metrics if "time" in entry]
    memory = [entry["peak_memory_mib"] for entry in metrics if "peak_memory_mib" in entry]
    return {"seconds_per_iteration": median(seconds), "memory_mib": max(memory)}


def series(metrics: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Iterations (counted from 1) and values of a logged scalar."""
    points = [(entry["iteration"] + 1, entry[key]) for entry in metrics if key in entry]
    return [x for x, _ in points], [y for _, y in points]


def weights_mib(checkpoint: str | Path) -> float:
    """MiB of the model's tensors in a checkpoint, without the optimizer's state beside them."""
    model = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    return sum(value.numel() * value.element_size() for value in model.values()) / 2**20
