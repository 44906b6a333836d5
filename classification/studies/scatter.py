"""The picture of accuracy against time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
FENCE = 1.5  # Tukey's: in interquartile ranges beyond the quartiles


def draw_scatter(points: Sequence[dict[str, Any]], title: str) -> Figure:
    """Last top-1, mean ± sample standard deviation over the seeds, against the time of a step.

    Where methods lie far off the others, as the plain student does, a second panel shows the others enlarged.

    Args:
        points: rows of ``classification.studies.efficiency``, in the legend's order.
        title: over the picture.
    """
    places = np.array([[1000 * point["seconds"], fmean(point["last_top1"])] for point in points])
    close = crowd(places)
    panels = 1 if close.all() else 2
    figure = Figure(figsize=(3 + 5.5 * panels, 5.5), layout="constrained")
    whole, *enlarged = figure.subplots(1, panels, squeeze=False)[0]
    _draw(whole, points)
    for axes in enlarged:
        _draw(axes, points)
        low, high = places[close].min(0), places[close].max(0)
        margin = 0.08 * (high - low) + [1e-3 * high[0], 0.05]
        (left, bottom), (right, top) = low - margin, high + margin
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.set_title("the crowd, enlarged", fontsize=10)
    figure.suptitle(title, fontsize=10)
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, title="method and top-1")
    return figure


def crowd(places: np.ndarray) -> np.ndarray:
    """Which of ``places`` (N, 2) are within Tukey's fences in both coordinates: bool (N,)."""
    low, high = np.quantile(places, [0.25, 0.75], axis=0)
    reach = FENCE * (high - low)
    return ((places >= low - reach) & (places <= high + reach)).all(1)


def _draw(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
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
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
