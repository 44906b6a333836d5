"""Renders the classification files of ``results/`` for MODEL_ZOO.md: the papers' rows beside ours.

Both have ``kind`` "classification". A paper's file: ``source``, ``rows``, ``notes``, and ``checked_against``, what its
numbers were compared with. A row: ``data``, ``teacher`` ("" for a model alone) and ``student`` as models are called
here, ``method``, ``table``, ``top1`` and ``top5`` in percent (null: not known), ``config`` (null: none here),
``checked`` (a key of ``checked_against``), and ``unchecked``, the numbers that are only remembered. Ours are what
run_classification.py writes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from kd_det.benchmark.environment import described
from kd_det.benchmark.table import summary
from kd_det.errors import SetupError

KIND = "classification"
REQUIRED = {
    "source": ("notes", "checked_against", "rows"),
    "rows": ("data", "teacher", "student", "method", "top1", "config"),
    "runs": ("config", "teacher", "student", "distiller", "seeds", "last_top1", "best_top1", "versions", "hardware"),
}
DATA = {"digits": "Digits", "cifar100": "CIFAR-100", "cub200": "CUB-200-2011", "imagenet": "ImageNet"}
# The start of a configuration's name to what tables call the method. Only the papers have those without one.
METHODS = {"vanilla": "alone", "fitnet": "FitNet", "at": "AT", "rkd": "RKD"}
METHODS |= {name: name for name in ("SP", "PKT", "OFD", "CRD", "WCoRD", "SemCKD", "MGD")}
METHODS |= {"reviewkd": "ReviewKD", "": "KD (rerun by Zhao et al.)", "kd": "KD"}
METHODS |= {"dkd_tckd": "TCKD alone", "dkd_nckd": "NCKD alone", "dkd_coupled": "TCKD + NCKD, coupled", "dkd": "DKD"}
METHODS |= {"nkd": "NKD", "sdd_kd": "SDD-KD", "sdd_dkd": "SDD-DKD", "sdd_nkd": "SDD-NKD", "mcld": "MCLD", "hcd": "HCD"}
ORDER = list(METHODS.values())
HEAD = """## Classification

Accuracy in percent on the test images after the last epoch, top-1 / top-5 for ImageNet, mean ± sample standard
deviation where there are several seeds; the best on the way is beside it, chosen on the evaluated images and so
optimistic. The code of Zhao et al. and of Wei et al. reports the best. Δ is against our student alone. Blank: not run
by us, or not in the paper. †: the paper's number as remembered, compared with no copy of it.
"""


class Key(NamedTuple):
    """A row of a table."""

    teacher: str
    student: str
    method: str

    def place(self) -> tuple[Any, ...]:
        """Where the row comes: models alone first, then pair by pair, methods as in ORDER."""
        known = self.method in ORDER
        method = (0, ORDER.index(self.method)) if known else (1, 0)
        return bool(self.teacher), self.teacher.lower(), self.student.lower(), method, self


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
            raise SetupError(f"{path} lacks {', '.join(sorted(missing))}; see classification/benchmark/model_zoo.py")
    return list(kept.values())


def render(results: Sequence[dict[str, Any]]) -> str:
    """The classification part of the page; nothing where there are no results."""
    if not results:
        return ""
    papers = [content for content in results if "source" in content]
    places = {row["config"]: _published_key(row) for paper in papers for row in paper["rows"] if row["config"]}
    runs: dict[str, dict[Key, dict[str, Any]]] = {}
    for content in results:
        for run in content.get("runs", []):
            runs.setdefault(_data(run), {})[places.get(run["config"]) or _key(run)] = run
    published = {row["data"] for paper in papers for row in paper["rows"]}
    names = [name for name in dict.fromkeys([*DATA, *runs]) if name in runs or name in published]
    sections = [_section(name, papers, runs.get(name, {})) for name in names]
    return "\n".join([HEAD, *sections, *(_notes(paper) for paper in papers)])


def _data(run: dict[str, Any]) -> str:
    """The data set of one of our runs: the folder of its configuration."""
    return run["config"].split("/")[0]


def _key(run: dict[str, Any]) -> Key:
    """The row of one of our runs whose configuration no paper's row has."""
    leaf = run["config"].split("/")[-1]
    starts = [start for start in METHODS if start and leaf.startswith(f"{start}_")]
    return Key(run["teacher"], run["student"], METHODS[max(starts, key=len)] if starts else run["distiller"])


def _published_key(row: dict[str, Any]) -> Key:
    return Key(row["teacher"], row["student"], row["method"])


def _section(data: str, papers: Sequence[dict[str, Any]], runs: dict[Key, dict[str, Any]]) -> str:
    columns = {
        paper["source"]: {_published_key(row): row for row in paper["rows"] if row["data"] == data}
        for paper in papers
        if any(row["data"] == data for row in paper["rows"])
    }
    rows = [row for column in columns.values() for row in column.values()]
    names = ("top1", "top5") if any(row.get("top5") for row in rows) else ("top1",)
    keys = sorted({*runs, *(key for column in columns.values() for key in column)}, key=Key.place)
    table = []
    for key in keys:
        theirs = [_published(column.get(key), names) for column in columns.values()]
        ours = _ours(runs.get(key), runs.get(Key("", key.student, "alone")), names)
        table.append([*key, *theirs, *ours, _config(key, runs, columns.values())])
    headers = ["teacher", "student", "method", *columns, "ours", "Δ", "best", "seeds", "s/epoch", "peak MiB"]
    headers += ["extra parameters", "config"]
    lines = [f"### {DATA.get(data, data)}", "", tabulate(table, headers, tablefmt="github", disable_numparse=True), ""]
    return "\n".join([*lines, *_provenance(runs.values())])


def _published(row: dict[str, Any] | None, names: Sequence[str]) -> str:
    cells = [(row[name], name in row.get("unchecked", ())) for name in names if row and row.get(name) is not None]
    return " / ".join(f"{value:.2f}{'†' * unchecked}" for value, unchecked in cells)


def _ours(run: dict[str, Any] | None, alone: dict[str, Any] | None, names: Sequence[str]) -> list[str]:
    if run is None:
        return [""] * 7
    last, best = (
        " / ".join(summary(run[f"{which}_{name}"], 2) for name in names if f"{which}_{name}" in run)
        for which in ("last", "best")
    )
    gain = ""
    if alone is not None and alone is not run:
        gain = f"{statistics.fmean(run['last_top1']) - statistics.fmean(alone['last_top1']):+.2f}"
    shown = [("seconds_per_epoch", 1), ("peak_memory_mib", 0)]
    cost = [summary(run[name], decimals) if name in run else "" for name, decimals in shown]
    return [last, gain, best, str(len(run["seeds"])), *cost, str(run.get("extra_parameters", ""))]


def _config(key: Key, runs: dict[Key, dict[str, Any]], columns: Iterable[dict[Key, dict[str, Any]]]) -> str:
    named = [row["config"] for row in (runs.get(key), *(column.get(key) for column in columns)) if row]
    return next((f"`configs/{name}.yaml`" for name in named if name), "")


def _provenance(runs: Iterable[dict[str, Any]]) -> list[str]:
    """One line for the rows of each machine and software."""
    lines = []
    for run in runs:
        software = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        lines.append(f"`tools/run_classification.py` on {described(run['hardware'])}; {software}")
    return [f"Ours, {lines.count(line)} rows: {line}.\n" for line in dict.fromkeys(lines)]


def _notes(paper: dict[str, Any]) -> str:
    checked = "; ".join(paper["checked_against"].values())
    return "\n".join(
        [f"{paper['source']}: compared with {checked}.", "", *(f"- {note}" for note in paper["notes"]), ""]
    )
