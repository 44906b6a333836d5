"""The cost of every distiller's training step, and its accuracy: rows, table and figure.

Figure 2 of Zhao et al. 2022 (section A.7): the time of a batch is that of the data, the forward and backward passes and
the update of memories; extra parameters are learnable ones and the entries of memories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from classification.composition import DOT, LSKD, SDD_BASES
from classification.distillers import DISTILLERS
from classification.studies.steps import Arm
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.figures import tidy
from kd_det.common.files import read_json
from kd_det.common.tables import markdown, summary

REFERENCE = "dkd"


def all_arms() -> dict[str, Arm]:
    """Every distiller with its default settings, by name; SDD once with each base; the plain student first.

    MLKD has its second view. LSKD and DOT, which go with several distillers, are measured with DKD.
    """
    names = sorted(DISTILLERS, key=lambda name: (name != "none", name))
    overrides: dict[str, tuple[str, ...]] = {name: ("DISTILLER", name) for name in names}
    del overrides["sdd"]
    overrides |= {f"sdd_{base}": ("DISTILLER", "sdd", "SDD.BASE", base) for base in SDD_BASES}
    overrides["mlkd"] += ("DATA.STRONG_VIEW", "True")
    overrides[f"{LSKD}dkd"] = ("DISTILLER", "dkd", "STANDARDIZE", "True")
    overrides[f"{DOT}dkd"] = ("DISTILLER", "dkd", "SOLVER.DOT_DELTA", "0.075")
    return {name: Arm(name, given) for name, given in overrides.items()}


def choose_arms(names: Sequence[str]) -> list[Arm]:
    """The arms with these names, and DKD's, with which the others are compared. Without names: all arms.

    Raises:
        SetupError: there is no arm with one of the names.
    """
    arms = all_arms()
    for name in names:
        if name not in arms:
            raise SetupError(f"--methods: there is no {name!r}.{did_you_mean(name, arms)} Known: {', '.join(arms)}.")
    return [arm for name, arm in arms.items() if not names or name in names or name == REFERENCE]


def read_accuracies(path: Path, teacher: str, student: str) -> dict[str, Any]:
    """The accuracies of one pair of models in a results file of tools/run_classification.py, or in a paper's table.

    Args:
        path: the results file, or a file of results/ with a paper's rows.
        teacher: the name of the pair's teacher.
        student: the name of the pair's student. If the file does not have the pair, the pair with most methods is
            taken.

    Returns:
        {"teacher": ..., "student": ..., "data": ..., "top1": {name of an arm: [the last top-1 of each seed]}}.

    Raises:
        SetupError: it is not such a file, or it has no distilled student.
    """
    content = read_json(path)
    runs = content.get("runs", _published(content.get("rows")))
    if content.get("kind") != "classification" or not isinstance(runs, list):
        raise SetupError(
            f"--results {str(path)!r} is not a results file of tools/run_classification.py, and no paper's. Make one "
            "with that command, or give --results '' to measure the costs alone."
        )
    pairs: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in runs:
        if row["distiller"] != "none" and (name := arm_name(row)):
            pairs.setdefault((row["teacher"], row["student"]), {}).setdefault(name, row["last_top1"])
    if not pairs:
        raise SetupError(f"--results {str(path)!r} has no distilled student. Run one with tools/run_classification.py.")
    pair = (teacher, student) if (teacher, student) in pairs else max(pairs, key=lambda pair: len(pairs[pair]))
    top1 = pairs[pair]
    for row in runs:
        if row["distiller"] == "none" and row["student"] == pair[1]:
            top1["none"] = row["last_top1"]
    data = content.get("data") or f"cifar100, {content.get('source')}"
    return {"teacher": pair[0], "student": pair[1], "data": data, "top1": top1}


def _published(rows: Any) -> list[dict[str, Any]] | None:
    """A paper's rows on CIFAR-100 as rows of runs. Rows whose configuration has further settings are left out."""
    if not isinstance(rows, list):
        return None
    found = []
    for row in rows:
        files = (row.get("config") or "").split()
        alone = row.get("teacher") == ""
        if row.get("data") == "cifar100" and row.get("top1") is not None and (alone or len(files) == 2):
            method = "none" if alone else files[0].partition(":")[2] or Path(files[0]).stem
            pair = {"teacher": row["teacher"], "student": row["student"]}
            found.append({**pair, "method": method, "distiller": method, "last_top1": [row["top1"]]})
    return found


def arm_name(row: dict[str, Any]) -> str | None:
    """The arm of a run's method; None if there is no such arm."""
    method = str(row["method"])
    return method if method in all_arms() else None


def make_rows(measured: Iterable[dict[str, Any]], top1: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row for each method: the result of ``compare_steps``, the ratio to DKD's step, and the known accuracies.

    "extra_numbers" are the extra parameters and the entries of memories together.

    Args:
        measured: results of ``compare_steps``, DKD's among them.
        top1: of ``read_accuracies``.
    """
    rows = [{"method": result["title"], **result} for result in measured]
    reference = next(row["seconds"] for row in rows if row["method"] == REFERENCE)
    for row in rows:
        row |= {"ratio_to_dkd": row["seconds"] / reference, "last_top1": top1.get(row["method"])}
        row["extra_numbers"] = row["extra_parameters"] + row["memory_entries"]
        del row["title"]
    return rows


def efficiency_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, the fastest first."""
    body = [
        [
            row["method"],
            f"{1000 * row['seconds']:.1f}",
            f"{row['ratio_to_dkd']:.2f}",
            f"{row['peak_memory_mib']:.0f}",
            row["extra_parameters"],
            row["memory_entries"],
            f"{row['buffers_mib']:.1f}",
            summary(row["last_top1"], 2) if row["last_top1"] else "",
        ]
        for row in sorted(rows, key=lambda row: row["seconds"])
    ]
    costs = ["step, ms", "to DKD", "peak MiB", "extra parameters", "memory entries", "buffers, MiB"]
    return markdown(body, ["method", *costs, "top-1"], text_columns=1)


def points(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with a known accuracy, the most accurate first."""
    known = [row for row in rows if row["last_top1"]]
    return sorted(known, key=lambda row: -fmean(row["last_top1"]))


MARKERS = "osD^vP*X"
FENCE = 1.5  # Tukey's: in interquartile ranges beyond the quartiles


def draw_costs(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Bars of every method's time, extra parameters with the entries of memories, and peak memory; the fastest on top.

    Args:
        rows: of ``make_rows``.
        title: above the figure.
    """
    order = sorted(rows, key=lambda row: -row["seconds"])
    names = [row["method"] for row in order]
    figure = Figure(figsize=(14, 1.6 + 0.28 * len(order)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    bars = {
        "time of a batch, data included, ms (median)": ([1000 * row["seconds"] for row in order], "{:.0f}"),
        "extra parameters and memory entries": ([row["extra_numbers"] for row in order], "{:,.0f}"),
        "peak memory of the process, MiB": ([row["peak_memory_mib"] for row in order], "{:.0f}"),
    }
    for axes, (label, (values, text)) in zip(panels, bars.items(), strict=True):
        drawn = axes.barh(names, values, color="#3b8ea5")
        axes.bar_label(drawn, fmt=text, padding=3, fontsize=8)
        axes.set_xlabel(label)
        axes.margins(x=0.18)
        tidy(axes)
    panels[1].set_xscale("symlog", linthresh=1)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_scatter(points: Sequence[dict[str, Any]], title: str) -> Figure:
    """Last top-1, mean ± sample standard deviation over the seeds, against the time of a step.

    If some methods are far from the others, as the plain student is, a second panel shows the others enlarged.

    Args:
        points: of ``points``, in the legend's order.
        title: above the figure.
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
    inside: np.ndarray = ((places >= low - reach) & (places <= high + reach)).all(1)
    return inside


def _draw(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    twenty = matplotlib.colormaps["tab20"]
    numbers = [*range(0, 20, 2), *range(1, 20, 2)]  # the dark colours first
    for number, point in enumerate(points):
        accuracy = point["last_top1"]
        axes.errorbar(
            1000 * point["seconds"],
            fmean(accuracy),
            yerr=stdev(accuracy) if len(accuracy) > 1 else None,
            fmt=MARKERS[number % len(MARKERS)],
            color=twenty(numbers[number % len(numbers)]),
            markersize=9,
            capsize=3,
            elinewidth=1,
            alpha=0.85,
            label=f"{point['method']}  {fmean(accuracy):.2f}",
        )
    axes.set(xlabel="time of a batch, data included, ms (median)", ylabel="top-1 after the last epoch, %")
    tidy(axes, grid="both")
