"""A paper's tables in MODEL_ZOO.md: pairs and methods in a grid, or studies with one run in each row; ours beside them.

``model_zoo`` describes the files. Rows with a ``setting`` belong to a study, the others to a grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from kd_det.common.tables import markdown, summary

Row = dict[str, Any]
# The title of the column with what follows --config-file, and the placeholder in it for a method.
ARGUMENTS = "arguments"
METHOD = "METHOD"


def shown(model: str) -> str:
    """A model's name in a table: without the tag of a library's pretrained weights."""
    return model.split(".")[0]


def accuracy(run: Row, which: str, names: Sequence[str]) -> str:
    """Ours, over the seeds; ``which``: "last" or "best"; ``names``: of "top1" and "top5"."""
    return " / ".join(summary(run[f"{which}_{name}"], 2) for name in names if f"{which}_{name}" in run)


def published(row: Row | None, names: Sequence[str]) -> str:
    """The paper's numbers; those that were not compared with a copy of it are in brackets."""
    cells = [(row[name], name in row.get("unchecked", ())) for name in names if row and row.get(name) is not None]
    return " / ".join(f"({value:.2f})" if unchecked else f"{value:.2f}" for value, unchecked in cells)


def is_alone(row: Row) -> bool:
    """Whether a row of a paper belongs to the table of models alone: it has no teacher and is of no study."""
    return not row["teacher"] and "setting" not in row


def alone_table(papers: Mapping[str, Sequence[Row]], names: Sequence[str]) -> str:
    """The models without distillation, one in each row: the papers' numbers, and the arguments; empty without any.

    Args:
        papers: the rows of one data set by paper.
        names: the accuracies shown, of "top1" and "top5".
    """
    found: dict[str, dict[str, Row]] = {}
    for source, rows in papers.items():
        for row in filter(is_alone, rows):
            found.setdefault(row["config"] or row["student"], {})[source] = row
    if not found:
        return ""
    sources = [source for source in papers if any(source in by_source for by_source in found.values())]
    table = []
    for by_source in found.values():
        row = next(iter(by_source.values()))
        numbers = [published(by_source.get(source), names) for source in sources]
        table.append([shown(row["student"]), *numbers, _code(row["config"])])
    return markdown(table, ["model", *sources, ARGUMENTS])


def paper_sections(
    paper: Row, rows: Sequence[Row], runs: Sequence[Row], names: Sequence[str], order: Mapping[str, int]
) -> list[str]:
    """Headings and tables of one data set of a paper.

    Args:
        paper: the content of its file.
        rows: its rows of the data set.
        runs: of our results files; a run belongs to the row that has its configuration.
        names: the accuracies shown, of "top1" and "top5".
        order: titles of methods to their places in a grid; the others come last.
    """
    by_config = {run["config"]: run for run in runs}
    alone = {shown(row["student"]): _both(row, by_config, names) for row in rows if is_alone(row)}
    tables: dict[str, list[Row]] = {}
    for row in rows:
        if not is_alone(row):
            tables.setdefault(row.get("table", ""), []).append(row)
    lines = []
    for name, group in tables.items():
        about = paper.get("tables", {}).get(name, {})
        lines += [f"#### {_heading(paper['source'], name)}", "", *_paragraph(about.get("caption"))]
        study = [row for row in group if "setting" in row]
        grid = [row for row in group if "setting" not in row]
        if grid:
            lines += [_grid(grid, alone, by_config, names, order), ""]
        if study:
            lines += [_study(study, by_config, names), ""]
        lines += _paragraph(f"`{about['command']}`" if "command" in about else None)
    return lines


def _heading(source: str, name: str) -> str:
    if not name:
        return source
    numbered = name[0].isdigit() or name.startswith("A.")
    return f"{source}, {('tables ' if ',' in name else 'table ') * numbered}{name}"


def _paragraph(text: str | None) -> list[str]:
    return [text, ""] if text else []


def _grid(
    rows: Sequence[Row],
    alone: Mapping[str, str],
    by_config: Mapping[str, Row],
    names: Sequence[str],
    order: Mapping[str, int],
) -> str:
    """A pair in each row, a method in each column, our accuracies below the paper's."""
    pairs: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        pairs.setdefault((row["teacher"], row["student"]), {})[row["method"]] = row
    methods = sorted(dict.fromkeys(row["method"] for row in rows), key=lambda method: order.get(method, len(order)))
    files = {row["method"]: _method(row["config"]) for row in rows if row["config"]}
    table = [
        [
            *(_lines(shown(model), alone.get(shown(model), "")) for model in pair),
            *(_both(found.get(method), by_config, names) for method in methods),
            _arguments(found.values()),
        ]
        for pair, found in pairs.items()
    ]
    heads = [f"{method}<br>`{files[method]}`" if method in files else method for method in methods]
    return markdown(table, ["teacher", "student", *heads, ARGUMENTS])


def _study(rows: Sequence[Row], by_config: Mapping[str, Row], names: Sequence[str]) -> str:
    """A run in each row, with its settings, the paper's number, ours, and its arguments."""
    keys = list(dict.fromkeys(key for row in rows for key in row["setting"]))
    with_number = any(row["top1"] is not None for row in rows)
    table = []
    for row in rows:
        start = [shown(row["teacher"]), shown(row["student"]), row["method"]]
        settings = [_setting(row["setting"].get(key, "")) for key in keys]
        run = by_config.get(row["config"])
        numbers = [published(row, names), accuracy(run, "last", names) if run else ""] if with_number else []
        table.append([*start, *settings, *numbers, _code(row["config"])])
    numbers = ["paper", "ours"] if with_number else []
    return markdown(
        table, ["teacher", "student", "method", *(key.replace("_", " ") for key in keys), *numbers, ARGUMENTS]
    )


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _both(row: Row | None, by_config: Mapping[str, Row], names: Sequence[str]) -> str:
    run = by_config.get(row["config"]) if row else None
    return _lines(published(row, names), f"**{accuracy(run, 'last', names)}**" if run else "")


def _lines(*texts: str) -> str:
    return "<br>".join(text for text in texts if text)


def _code(arguments: str | None) -> str:
    return f"`{arguments}`" if arguments else ""


def _method(config: str) -> str:
    """The method in the first of the arguments, without its folder: "methods/dkd.yaml", "methods.yaml:crd"."""
    return "/".join(PurePosixPath(config.split()[0]).parts[1:])


def _arguments(rows: Iterable[Row]) -> str:
    """The arguments of a pair's row. ``METHOD`` stands for the methods that differ in nothing else."""
    configs = [row["config"] for row in rows if row["config"]]
    forms = [config.replace(f"/{_method(config)}", f"/{METHOD}", 1) for config in configs]
    shared = {form for form in forms if forms.count(form) > 1}
    shown = {form if form in shared else config for form, config in zip(forms, configs, strict=True)}
    return "<br>".join(f"`{config}`" for config in sorted(shown, key=lambda text: (text not in shared, text)))
