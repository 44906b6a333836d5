"""The picture of a sweep of one or two keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from classification.studies.ablation import described

MOST_KEYS = 2


@dataclass(frozen=True)
class HeatMap:
    """Cells by row and column; the rows are the first of two keys, the columns the other or only one."""

    row_key: str
    column_key: str
    row_values: list[str]
    column_values: list[str]
    means: np.ndarray  # (rows, columns) float64, nan where a seed diverged
    texts: list[list[str]]


def heat_map(rows: Sequence[dict[str, Any]]) -> HeatMap:
    """The cells of a sweep's rows, one for every pair of values.

    Raises:
        ValueError: the sweep has more than two keys.
    """
    keys = list(rows[0]["values"])
    if len(keys) > MOST_KEYS:
        raise ValueError(f"a heat map has two keys at the most; got {keys}.")
    *first, last = keys
    places = {(*("" for _ in range(MOST_KEYS - len(keys))), *row["values"].values()): row["last_top1"] for row in rows}
    row_values, column_values = (list(dict.fromkeys(place[side] for place in places)) for side in (0, 1))
    cells = [[places[row, column] for column in column_values] for row in row_values]
    means = np.array([[np.nan if None in cell else fmean(cell) for cell in line] for line in cells])
    texts = [[described(cell).replace(" ±", "\n±").replace(" (", "\n(") for cell in line] for line in cells]
    return HeatMap(first[0] if first else "", last, row_values, column_values, means, texts)


def draw_heat_map(data: HeatMap, title: str) -> Figure:
    """The means as colours, with the numbers; grey where a seed diverged."""
    height, width = data.means.shape
    figure = Figure(figsize=(max(4.5, 2.2 + 1.1 * width), max(2.4, 1.6 + 0.8 * height)), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#bbbbbb")
    picture = axes.imshow(data.means, cmap=colours, aspect="auto")
    for (row, column), mean in np.ndenumerate(data.means):
        dark = picture.norm(mean) < 0.6 if np.isfinite(mean) else False
        style = {"color": "white" if dark else "black", "ha": "center", "va": "center", "fontsize": 9}
        axes.text(column, row, data.texts[row][column], **style)
    axes.set_xticks(range(width), data.column_values)
    axes.set_yticks(range(height) if data.row_key else [], data.row_values if data.row_key else [])
    axes.set(xlabel=data.column_key, ylabel=data.row_key)
    axes.set_title(title, fontsize=10)
    if np.isfinite(data.means).any():
        figure.colorbar(picture, ax=axes, label="top-1, %")
    return figure
