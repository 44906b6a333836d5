"""A paper's table of one data set: a pair in each row, a method in each column, our accuracies below the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from classification.benchmark.methods import ALONE, place, shown, split_name
from kd_det.benchmark.table import summary

Row = dict[str, Any]


def paper_table(rows: Sequence[Row], runs: Sequence[Row], names: Sequence[str]) -> str:
    """The table in Markdown.

    Args:
        rows: of a paper's results file, one data set's.
        runs: of our results files; a run belongs to the row that has its configuration.
        names: the figures shown, of "top1" and "top5".
    """
    by_config = {run["config"]: run for run in runs}
    alone = {shown(row["student"]): _both(row, by_config, names) for row in rows if row["method"] == ALONE}
    pairs: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row["method"] != ALONE:
            pairs.setdefault((row["teacher"], row["student"]), {})[row["method"]] = row
    paired = {shown(model) for pair in pairs for model in pair}
    for row in rows:
        if row["method"] == ALONE and shown(row["student"]) not in paired:
            pairs[row["teacher"], row["student"]] = {ALONE: row}
    methods = sorted({method for found in pairs.values() for method in found} - {ALONE}, key=place)
    table = [
        [
            *(_model(model, alone.get(shown(model), "")) for model in pair),
            *(_both(found.get(method), by_config, names) for method in methods),
            _configs(found.values()),
        ]
        for pair, found in pairs.items()
    ]
    return markdown(table, ["teacher", "student", *methods, "in configs/"])


def published(row: Row | None, names: Sequence[str]) -> str:
    """The paper's numbers; what is only remembered has a dagger."""
    cells = [(row[name], name in row.get("unchecked", ())) for name in names if row and row.get(name) is not None]
    return " / ".join(f"{value:.2f}{'†' * unchecked}" for value, unchecked in cells)


def accuracy(run: Row, which: str, names: Sequence[str]) -> str:
    """Ours, over the seeds; ``which``: "last" or "best"."""
    return " / ".join(summary(run[f"{which}_{name}"], 2) for name in names if f"{which}_{name}" in run)


def markdown(table: list[list[str]], headers: Sequence[str]) -> str:
    """A table in GitHub's Markdown, its cells as they are."""
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def _both(row: Row | None, by_config: dict[str, Row], names: Sequence[str]) -> str:
    run = by_config.get(row["config"]) if row else None
    ours = f"**{accuracy(run, 'last', names)}**" if run else ""
    return "<br>".join(text for text in (published(row, names), ours) if text)


def _model(name: str, alone: str) -> str:
    return "<br>".join(text for text in (shown(name), alone) if text)


def _configs(rows: Iterable[Row]) -> str:
    """The configurations of a pair, which differ in the method alone."""
    named = [row["config"] for row in rows if row["config"]]
    patterns = {f"{config.split('/')[0]}/*_{split_name(config)[1]}": config for config in named}
    return "<br>".join(f"`{pattern if len(named) > 1 else config}.yaml`" for pattern, config in patterns.items())
