"""The metrics that Detectron2 wrote during a training run, and the table of several runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kd_det.common.tables import markdown, summary

AP = "bbox/AP"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The entries of a ``metrics.json``, one for each iteration. After a resumption, a repeated line wins."""
    by_iteration: dict[int, dict[str, Any]] = {}
    for line in Path(path).read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a line that an interruption truncated
            continue
        by_iteration.setdefault(entry["iteration"], {}).update(entry)
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def average_precision(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """COCO AP of the last evaluation, and the best AP of all evaluations, in percent.

    Raises:
        ValueError: the run has no evaluation.
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
    """The median seconds of an iteration, without waiting for data, and the peak memory in MiB."""
    seconds = [entry["time"] - entry.get("data_time", 0.0) for entry in metrics if "time" in entry]
    memory = [entry["peak_memory_mib"] for entry in metrics if "peak_memory_mib" in entry]
    return {"seconds_per_iteration": median(seconds), "memory_mib": max(memory)}


def series(metrics: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The iterations (counted from 1) and values of a logged scalar."""
    points = [(entry["iteration"] + 1, entry[key]) for entry in metrics if key in entry]
    return [x for x, _ in points], [y for _, y in points]


def weights_mib(checkpoint: str | Path) -> float:
    """The size of the model's tensors in a checkpoint, in MiB, without the optimizer's state."""
    model: dict[str, torch.Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    return sum(value.numel() * value.element_size() for value in model.values()) / 2**20


COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "best_AP": "best AP",
    "seconds": "training, s",
    "seconds_per_iteration": "s/iter",
    "memory_mib": "peak MiB",
    "weights_mib": "weights, MiB",
}
TIMES = ("seconds", "seconds_per_iteration")
DECIMALS = {"seconds": 0, "seconds_per_iteration": 2, "memory_mib": 0}
NOTES = (
    "AP: COCO AP in percent on digits_det_val after the last iteration. best AP: the highest of all evaluations during "
    "training; it is chosen on the same scenes and therefore optimistic. training: wall clock with start and "
    "evaluations. s/iter: median of a training step. peak MiB: of the training process. weights: the model's tensors, "
    "as an exported file has them, without optimizer state."
)


def metrics_table(results: Mapping[str, Sequence[Mapping[str, Any]]], *, timed: bool = True) -> str:
    """A Markdown table with one row for each arm.

    Args:
        results: an arm's title to the results of its seeds, each with the keys of ``COLUMNS``.
        timed: False leaves out the times, which mean nothing if runs shared the cores.
    """
    columns = {key: header for key, header in COLUMNS.items() if timed or key not in TIMES}
    rows = [
        [title, *(summary([run[key] for run in runs], DECIMALS.get(key, 1)) for key in columns), len(runs)]
        for title, runs in results.items()
    ]
    return markdown(rows, ["model", *columns.values(), "seeds"], text_columns=1)
