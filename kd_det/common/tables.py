"""The benchmark's table: mean and sample standard deviation over seeds."""

import statistics
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

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


def summary(values: Sequence[float], decimals: int = 1) -> str:
    """Mean, and ± the sample standard deviation where there are several values."""
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def make_table(results: dict[str, list[dict[str, Any]]], *, timed: bool = True) -> str:
    """A Markdown table, one row an arm.

    Args:
        results: arm's title to the results of its seeds, each with the keys of ``COLUMNS``.
        timed: False leaves out the times, which mean nothing where runs shared the cores.
    """
    columns = {key: header for key, header in COLUMNS.items() if timed or key not in TIMES}
    rows = [
        [title, *(summary([run[key] for run in runs], DECIMALS.get(key, 1)) for key in columns), len(runs)]
        for title, runs in results.items()
    ]
    headers = ["model", *columns.values(), "seeds"]
    alignment = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=alignment)


NOTES = (
    "AP: COCO AP in percent on digits_det_val after the last iteration. best AP: the highest of the "
    "evaluations on the way, chosen on the same scenes and so optimistic. training: wall clock with start "
    "and evaluations. s/iter: median of a training step. peak MiB: of the training process. weights: the "
    "model's tensors, as an exported file holds them, without optimizer state."
)
