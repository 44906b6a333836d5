"""The picture of accuracy against time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import matplotlib
from matplotlib.figure import Figure

MARKERS = "osD^vP*X"


def draw_scatter(points: Sequence[dict[str, Any]], title: str) -> Figure:
    """Last top-1, mean ± sample standard deviation over the seeds, against the time of a step.

    Args:
        points: rows of ``classification.analysis.efficiency``, in the legend's order.
        title: over the picture.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    twenty = matplotlib.colormaps["tab20"].colors
    colours = twenty[::2] + twenty[1::2]  # the dark ones first
    for number, point in enumerate(points):
        accuracy = point["last_top1"]
        axes.errorbar(
            1000 * point["seconds"],
            fmean(accuracy),
            yerr=stdev(accuracy) if len(accuracy) > 1 else None,
            fmt=MARKERS[number % len(MARKERS)],
            color=colours[number % len(colours)],
            markersize=9,
            capsize=3,
            elinewidth=1,
            alpha=0.85,
            label=f"{point['method']}  {fmean(accuracy):.2f}",
        )
    axes.set(xlabel="time of a training step, ms (median)", ylabel="top-1 after the last epoch, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, title="method and top-1")
    return figure
