"""A paper's table of one data set: a pair in each row, a method in each column, our accuracies below the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from tabulate import tabulate

from classification.studies.methods import ALONE, place, shown
from kd_det.common.tables import summary

Row = dict[str, Any]
# The head of the column with what follows --config-file, and what is written there for the method's file.
ARGUMENTS = "arguments"
METHOD = "METHOD"


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
    methods = sorted({method for found in pairs.values() for method in found}, key=place)
    files = {row["method"]: _method(row["config"]) for row in rows if row["config"]}
    table = [
        [
            *(_model(model, alone.get(shown(model), "")) for model in pair),
            *(_both(found.get(method), by_config, names) for method in methods),
            _arguments(found.values()),
        ]
        for pair, found in pairs.items()
    ]
    heads = [f"{method}<br>`{files[method]}`" if method in files else method for method in methods]
    return markdown(table, ["teacher", "student", *heads, ARGUMENTS])


def alone_table(papers: Mapping[str, Sequence[Row]], names: Sequence[str]) -> str:
    """Models without distillation, a row for each: what the papers give, and the arguments. Empty where there is none.

    Args:
        papers: the rows of one data set by paper.
        names: the figures shown, of "top1" and "top5".
    """
    found: dict[str, dict[str, Row]] = {}
    for source, rows in papers.items():
        for row in rows:
            if row["method"] == ALONE:
                found.setdefault(row["config"] or row["student"], {})[source] = row
    if not found:
        return ""
    sources = [source for source in papers if any(source in rows for rows in found.values())]
    table = []
    for rows in found.values():
        row = next(iter(rows.values()))
        figures = [published(rows.get(source), names) for source in sources]
        table.append([shown(row["student"]), *figures, f"`{row['config']}`" if row["config"] else ""])
    return markdown(table, ["model", *sources, ARGUMENTS])


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


def _method(config: str) -> str:
    """The name of the method's file, the first in the arguments."""
    return PurePosixPath(config.split()[0]).stem


def _arguments(rows: Iterable[Row]) -> str:
    """Those of a pair's row, which differ in the method's file alone."""
    configs = [row["config"] for row in rows if row["config"]]
    if len(configs) > 1:
        configs = sorted({config.replace(f"/{_method(config)}.yaml", f"/{METHOD}.yaml", 1) for config in configs})
    return "<br>".join(f"`{config}`" for config in configs)
