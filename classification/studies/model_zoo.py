"""The classification part of MODEL_ZOO.md, from ``results/*.json``: our runs, then each paper's table with ours in it.

Both kinds of files have ``kind`` "classification". A paper's file: ``source``, ``rows``, ``notes``,
``checked_against``, what its numbers were compared with, and ``tables``: for the name of a table its ``caption`` and a
``command`` that runs the whole table. A row: ``data``, ``teacher`` ("" for a model alone) and ``student`` as this
package names models, ``method``, ``table``, ``top1`` and ``top5`` in percent (null: not known), ``config`` (what
follows --config-file in the command that runs it; null: no such run here), ``checked`` (a key of ``checked_against``),
and ``unchecked``, the names of the numbers that could not be compared. Rows of a study, with one run in each row, have
``setting``: what the row varies, by name. Our files are what run_classification.py writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classification.studies.paper_tables import (
    ARGUMENTS,
    Row,
    accuracy,
    alone_table,
    paper_sections,
    published,
    shown,
)
from kd_det.common import tables
from kd_det.common.environment import described
from kd_det.common.tables import gain, markdown, summary

KIND = "classification"
REQUIRED = {
    "rows": ("data", "teacher", "student", "method", "top1", "config"),
    "runs": (
        *("config", "data", "method", "teacher", "student", "seeds", "last_top1", "best_top1", "versions", "hardware"),
    ),
}
OF_A_PAPER = {"": ("notes", "checked_against", "rows")}
DATA = {"digits": "Digits", "cifar100": "CIFAR-100", "cub200": "CUB-200-2011", "imagenet": "ImageNet"}

# A method's name, of ``composition.method_name``, to its title in tables, in the tables' order. Methods that only the
# papers have are listed under their titles. A method that is not listed is shown by its name, after the others.
METHODS = {"none": "alone", "fitnet": "FitNet", "at": "AT", "rkd": "RKD", "sp": "SP", "nst": "NST", "pkt": "PKT"}
METHODS |= {"kdsvd": "KDSVD", "vid": "VID", "crd": "CRD", "crd+kd": "CRD + KD", "WCoRD": "WCoRD", "ofd": "OFD"}
METHODS |= {name: name for name in ("SemCKD", "MGD", "OFA-KD")}
METHODS |= {"reviewkd": "ReviewKD", "simkd": "SimKD", "catkd": "CAT-KD", "": "KD (rerun by Zhao et al.)", "kd": "KD"}
METHODS |= {"ctkd": "CTKD", "CTKD+KD": "CTKD+KD", "dist": "DIST", "mlkd": "MLKD", "dot_kd": "DOT + KD"}
METHODS |= {"lskd_kd": "LSKD + KD", "lskd_ctkd": "LSKD + CTKD", "lskd_mlkd": "LSKD + MLKD", "lskd_dkd": "LSKD + DKD"}
METHODS |= {"dkd_tckd": "TCKD alone", "dkd_nckd": "NCKD alone", "dkd_coupled": "TCKD + NCKD, coupled", "dkd": "DKD"}
METHODS |= {"dot_dkd": "DOT + DKD", "nkd": "NKD", "sdd_kd": "SDD-KD", "sdd_dkd": "SDD-DKD", "sdd_nkd": "SDD-NKD"}
METHODS |= {"sdd_dkd+reviewkd": "SDD-DKD + ReviewKD", "mcld": "MCLD", "hcd": "HCD"}
ORDER = list(METHODS.values())
ALONE = METHODS["none"]

HEAD = """## Classification

The command of a row is

```
python -m classification.train --config-file ARGUMENTS
```

with the ARGUMENTS in its last cell. Replace METHOD in them by the text in the title of a method's column, such as
`methods/kd.yaml`. A line below a table runs all of it.

Accuracy is in percent on the test images, top-1 / top-5 for ImageNet. Ours is the accuracy after the last epoch: the
mean, and ± the sample standard deviation if there are several seeds. The best is the highest accuracy during training;
it is chosen on the evaluated images and therefore optimistic. The code of Zhao et al. and of Wei et al. reports the
best. Δ is the gain over our student alone.

A paper's table has one pair in each row. Below a model is its accuracy alone. Below a paper's number is **ours**, if we
have run it. An empty cell: the paper does not have the number, or we do not know it. In brackets: not compared with a
copy of the paper. Models without arguments come with their library.
"""


class Key(NamedTuple):
    """What a row of a table shows."""

    teacher: str
    student: str
    method: str

    def place(self) -> tuple[Any, ...]:
        """For sorting: models alone first, then pair by pair, methods in their order."""
        return bool(self.teacher), self.teacher.lower(), self.student.lower(), place(self.method), self


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The classification results of a folder; see ``kd_det.common.tables.read_results``."""
    return tables.read_results(
        folder,
        lambda content: content.get("kind") == KIND,
        lambda content: (OF_A_PAPER if "source" in content else {}) | REQUIRED,
        __name__,
    )


def render(results: Sequence[dict[str, Any]]) -> str:
    """The classification part of the page; empty if there are no results."""
    if not results:
        return ""
    papers = sorted((content for content in results if "source" in content), key=lambda paper: _year(paper["source"]))
    runs = [run for content in results for run in content.get("runs", [])]
    used = [*(row["data"] for paper in papers for row in paper["rows"]), *(run["data"] for run in runs)]
    names = [name for name in dict.fromkeys([*DATA, *used]) if name in used]
    sections = [_section(name, papers, runs) for name in names]
    return "\n".join([HEAD, *sections, *(_notes(paper) for paper in papers)])


def title(method: str) -> str:
    """A method's name in tables."""
    return METHODS.get(method, method)


def place(method: str) -> tuple[bool, int]:
    """For sorting titles of methods: in the order of ``METHODS``, those that are not listed last."""
    return method not in ORDER, ORDER.index(method) if method in ORDER else 0


def _year(source: str) -> str:
    return source.split()[-1]


def _section(data: str, papers: Sequence[dict[str, Any]], runs: Sequence[Row]) -> str:
    """A data set: our runs, then the papers' tables."""
    chosen = {paper["source"]: [row for row in paper["rows"] if row["data"] == data] for paper in papers}
    chosen = {source: rows for source, rows in chosen.items() if rows}
    runs = [run for run in runs if run["data"] == data]
    names = ("top1", "top5") if any(row.get("top5") for rows in chosen.values() for row in rows) else ("top1",)
    lines = [f"### {DATA.get(data, data)}", ""]
    if runs:
        lines += [_our_table(chosen, runs, names), "", *_provenance(runs)]
    if alone := alone_table(chosen, names):
        lines += ["#### Models alone", "", alone, ""]
    places = {method: number for number, method in enumerate(ORDER)}
    for paper in papers:
        lines += paper_sections(paper, chosen.get(paper["source"], []), runs, names, places)
    return "\n".join(lines)


def _our_table(chosen: Mapping[str, Sequence[Row]], runs: Sequence[Row], names: Sequence[str]) -> str:
    # Rows of a study that a grid or the models alone have too are the same runs; a grid's row names them.
    columns = {
        source: {row["config"]: row for row in sorted(rows, key=lambda row: "setting" not in row) if row["config"]}
        for source, rows in chosen.items()
    }
    columns = {source: rows for source, rows in columns.items() if any(run["config"] in rows for run in runs)}
    # A run is shown as the paper's row that has its configuration.
    keys = {
        config: Key(row["teacher"], row["student"], row["method"])
        for rows in columns.values()
        for config, row in rows.items()
    }
    keyed = [
        (keys.get(run["config"]) or Key(run["teacher"], run["student"], title(run["method"])), run) for run in runs
    ]
    alone = {key.student: run for key, run in keyed if key.method == ALONE}
    table = []
    for key, run in sorted(keyed, key=lambda pair: pair[0].place()):
        theirs = [published(rows.get(run["config"]), names) for rows in columns.values()]
        ours = _ours(run, alone.get(key.student), names)
        table.append([shown(key.teacher), shown(key.student), key.method, *theirs, *ours, f"`{run['config']}`"])
    headers = ["teacher", "student", "method", *columns, "ours", "Δ", "best", "seeds", "s/epoch", "peak MiB"]
    return markdown(table, [*headers, "extra parameters", ARGUMENTS])


def _ours(run: Row, alone: Row | None, names: Sequence[str]) -> list[str]:
    over_alone = gain(run["last_top1"], alone["last_top1"], 2) if alone is not None and alone is not run else ""
    shown_costs = [("seconds_per_epoch", 1), ("peak_memory_mib", 0)]
    costs = [summary(run[name], decimals) if name in run else "" for name, decimals in shown_costs]
    seeds, extra = str(len(run["seeds"])), str(run.get("extra_parameters", ""))
    return [accuracy(run, "last", names), over_alone, accuracy(run, "best", names), seeds, *costs, extra]


def _provenance(runs: Sequence[Row]) -> list[str]:
    """One line for the rows of each machine and software."""
    lines = [f"`tools/run_classification.py` on {described(run['hardware'], run['versions'])}" for run in runs]
    return [f"Ours, {lines.count(line)} rows: {line}.\n" for line in dict.fromkeys(lines)]


def _notes(paper: dict[str, Any]) -> str:
    checked = "; ".join(paper["checked_against"].values()) or "no copy, because none of its tables was available"
    return "\n".join(
        [f"{paper['source']}: compared with {checked}.", "", *(f"- {note}" for note in paper["notes"]), ""]
    )
