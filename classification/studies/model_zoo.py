"""Renders the classification files of ``results/`` for MODEL_ZOO.md: our runs, then each paper's table with ours in it.

Both have ``kind`` "classification". A paper's file: ``source``, ``rows``, ``notes``, and ``checked_against``, what its
numbers were compared with. A row: ``data``, ``teacher`` ("" for a model alone) and ``student`` as models are called
here, ``method``, ``table``, ``top1`` and ``top5`` in percent (null: not known), ``config`` (what follows --config-file
in the command that runs it; null: no such run here), ``checked`` (a key of ``checked_against``), and ``unchecked``, the
numbers that are only remembered. Ours are what run_classification.py writes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classification.studies.methods import ALONE, METHODS, place, shown
from classification.studies.paper_table import ARGUMENTS, accuracy, alone_table, markdown, paper_table, published
from kd_det.common.environment import described
from kd_det.common.errors import SetupError
from kd_det.common.tables import summary

KIND = "classification"
REQUIRED = {
    "source": ("notes", "checked_against", "rows"),
    "rows": ("data", "teacher", "student", "method", "top1", "config"),
    "runs": (
        *("config", "data", "method", "teacher", "student", "seeds", "last_top1", "best_top1", "versions", "hardware"),
    ),
}
DATA = {"digits": "Digits", "cifar100": "CIFAR-100", "cub200": "CUB-200-2011", "imagenet": "ImageNet"}
HEAD = """## Classification

The command of a row is

```
python -m classification.train --config-file ARGUMENTS
```

with the ARGUMENTS in its last cell. METHOD in them stands for the name in the head of a method's column, such as `kd`.
`reviewkd` needs networks with the same number of stages.

Accuracy in percent on the test images, top-1 / top-5 for ImageNet. Ours is that after the last epoch, mean ± sample
standard deviation where there are several seeds; the best on the way is beside it, chosen on the evaluated images and
so optimistic. The code of Zhao et al. and of Wei et al. reports the best. Δ is against our student alone.

A paper's table has a pair in each row. Below a model is what it reaches alone, below a paper's number **ours**, where
we have run it. Empty: not in the paper, or not known to us. †: as remembered, compared with no copy of the paper.
"""


class Key(NamedTuple):
    """A row of a table."""

    teacher: str
    student: str
    method: str

    def place(self) -> tuple[Any, ...]:
        """Where the row comes: models alone first, then pair by pair, methods in their order."""
        return bool(self.teacher), self.teacher.lower(), self.student.lower(), place(self.method), self


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The classification files of a folder, by name.

    Raises:
        SetupError: one lacks a field.
    """
    files = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    kept = {path: content for path, content in files.items() if content.get("kind") == KIND}
    for path, content in kept.items():
        parts = [("source", [content])] if "source" in content else []
        parts += [(part, content.get(part, [])) for part in ("rows", "runs")]
        named = [(part, name, item) for part, items in parts for item in items for name in REQUIRED[part]]
        missing = {f"{part} {name}" for part, name, item in named if name not in item}
        if missing:
            raise SetupError(f"{path} lacks {', '.join(sorted(missing))}; see classification/studies/model_zoo.py")
    return list(kept.values())


def render(results: Sequence[dict[str, Any]]) -> str:
    """The classification part of the page; nothing where there are no results."""
    if not results:
        return ""
    papers = sorted((content for content in results if "source" in content), key=lambda paper: _year(paper["source"]))
    runs = [run for content in results for run in content.get("runs", [])]
    used = [*(row["data"] for paper in papers for row in paper["rows"]), *(run["data"] for run in runs)]
    names = [name for name in dict.fromkeys([*DATA, *used]) if name in used]
    sections = [_section(name, papers, runs) for name in names]
    return "\n".join([HEAD, *sections, *(_notes(paper) for paper in papers)])


def _year(source: str) -> str:
    return source.split()[-1]


def _key(run: dict[str, Any]) -> Key:
    """The row of one of our runs whose configuration no paper's row has."""
    return Key(run["teacher"], run["student"], METHODS.get(run["method"], run["method"]))


def _published_key(row: dict[str, Any]) -> Key:
    return Key(row["teacher"], row["student"], row["method"])


def _section(data: str, papers: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> str:
    """A data set: our runs, then the papers' tables."""
    chosen = {paper["source"]: [row for row in paper["rows"] if row["data"] == data] for paper in papers}
    chosen = {source: rows for source, rows in chosen.items() if rows}
    runs = [run for run in runs if run["data"] == data]
    names = ("top1", "top5") if any(row.get("top5") for rows in chosen.values() for row in rows) else ("top1",)
    lines = [f"### {DATA.get(data, data)}", ""]
    if runs:
        lines += [*_our_table(chosen, runs, names), *_provenance(runs)]
    if alone := alone_table(chosen, names):
        lines += ["#### Models alone", "", alone, ""]
    for source, rows in chosen.items():
        if any(row["method"] != ALONE for row in rows):
            lines += [f"#### {source}", "", paper_table(rows, runs, names), ""]
    return "\n".join(lines)


def _our_table(
    chosen: dict[str, list[dict[str, Any]]], runs: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[str]:
    columns = {source: {row["config"]: row for row in rows if row["config"]} for source, rows in chosen.items()}
    columns = {source: rows for source, rows in columns.items() if any(run["config"] in rows for run in runs)}
    places = {config: _published_key(row) for rows in columns.values() for config, row in rows.items()}
    keyed = [(places.get(run["config"]) or _key(run), run) for run in runs]
    alone = {key.student: run for key, run in keyed if key.method == ALONE}
    table = []
    for key, run in sorted(keyed, key=lambda pair: pair[0].place()):
        theirs = [published(rows.get(run["config"]), names) for rows in columns.values()]
        ours = _ours(run, alone.get(key.student), names)
        models = [shown(key.teacher), shown(key.student), key.method]
        table.append([*models, *theirs, *ours, f"`{run['config']}`"])
    headers = ["teacher", "student", "method", *columns, "ours", "Δ", "best", "seeds", "s/epoch", "peak MiB"]
    return [markdown(table, [*headers, "extra parameters", ARGUMENTS]), ""]


def _ours(run: dict[str, Any], alone: dict[str, Any] | None, names: Sequence[str]) -> list[str]:
    gain = ""
    if alone is not None and alone is not run:
        gain = f"{statistics.fmean(run['last_top1']) - statistics.fmean(alone['last_top1']):+.2f}"
    costs = [("seconds_per_epoch", 1), ("peak_memory_mib", 0)]
    cost = [summary(run[name], decimals) if name in run else "" for name, decimals in costs]
    seeds, extra = str(len(run["seeds"])), str(run.get("extra_parameters", ""))
    return [accuracy(run, "last", names), gain, accuracy(run, "best", names), seeds, *cost, extra]


def _provenance(runs: Sequence[dict[str, Any]]) -> list[str]:
    """One line for the rows of each machine and software."""
    lines = []
    for run in runs:
        software = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        lines.append(f"`tools/run_classification.py` on {described(run['hardware'])}; {software}")
    return [f"Ours, {lines.count(line)} rows: {line}.\n" for line in dict.fromkeys(lines)]


def _notes(paper: dict[str, Any]) -> str:
    checked = "; ".join(paper["checked_against"].values()) or "no copy: its tables were not at hand"
    return "\n".join(
        [f"{paper['source']}: compared with {checked}.", "", *(f"- {note}" for note in paper["notes"]), ""]
    )
