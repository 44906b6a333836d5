"""The detection part of MODEL_ZOO.md, from ``results/*.json``: the papers' rows next to ours.

A results file: ``benchmark`` (title), ``source`` ("ours", or the paper), ``schedule``, ``rows``, and for ours
``hardware``, ``versions`` and ``command``. A row: ``teacher``, ``student``, ``method``, ``config`` (what follows
--config-file in the command that trains it), and lists with one entry a seed: ``teacher_AP`` (one), ``student_AP``,
``AP``, the same with ``AP50`` and ``AP75``, and for ours ``best_AP``, ``seconds_per_iteration``, ``memory_mib``. A
file may have ``notes``, which are shown below its table. Files with a ``kind`` belong to other benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_det.common import tables
from kd_det.common.environment import described
from kd_det.common.tables import gain, markdown, summary

OURS = "ours"
METRICS = ("AP", "AP50", "AP75")
REQUIRED = {"": ("benchmark", "source", "schedule", "rows"), "rows": ("teacher", "student", "method", "config", "AP")}
HEAD = """# Model zoo

`python tools/make_tables.py` writes this page from `results/*.json`. Edit those files, not this page.

## Detection

The command of a row is

```
kd-det train --config-file ARGUMENTS
```

with the ARGUMENTS in its last cell. The rows of the digits scenes use a teacher and pretrained backbones of their own:
the command below their table trains these first, and then all rows.

AP is COCO AP in percent after the last iteration, with AP50 and AP75 where the results have them (AP / AP50 / AP75):
the mean, and ± the sample standard deviation if there are several seeds. The best AP is the highest of all evaluations
during training; it is chosen on the evaluated images and therefore optimistic. Δ is the gain over the student alone. A
blank cell: we have not run it.
"""


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The detection results of a folder; see ``kd_det.common.tables.read_results``."""
    return tables.read_results(folder, lambda content: "kind" not in content, lambda content: REQUIRED, __name__)


def render(results: Sequence[dict[str, Any]]) -> str:
    """The head of the page, and its detection part.

    Args:
        results: contents of results files; those of one ``benchmark`` share a table.
    """
    titles = dict.fromkeys(content["benchmark"] for content in results)
    return "\n".join([HEAD, *(_section(title, [r for r in results if r["benchmark"] == title]) for title in titles)])


def _section(title: str, results: Sequence[dict[str, Any]]) -> str:
    papers = [content for content in results if content["source"] != OURS]
    ours = [content for content in results if content["source"] == OURS]
    published, run = (_by_key(part) for part in (papers, ours))
    headers = ["teacher", "student", "method", "schedule", "teacher AP"]
    if papers:
        source = ", ".join(dict.fromkeys(content["source"] for content in papers))
        headers += [f"student alone ({source})", source, "Δ"]
    headers += ["student alone (ours)", "ours", "Δ", "best AP", "seeds", "s/iter", "peak MiB", "arguments"]
    table = []
    for key in {**published, **run}:
        paper, row = published.get(key, {}), run.get(key, {})
        either = row or paper
        start = [*key, _metrics(either, "teacher_", 1 if row else 2)]
        theirs = _scores(paper, 2) if papers else []
        table.append([*start, *theirs, *_scores(row, 1), *_costs(row), f"`{either['config']}`"])
    lines = [f"### {title}", "", markdown(table, headers), ""]
    notes = [f"- {note}" for content in papers for note in content.get("notes", [])]
    return "\n".join([*lines, *notes, *[""] * bool(notes), *(_provenance(content) for content in ours)])


def _by_key(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    return {
        (row["teacher"], row["student"], row["method"], content["schedule"]): row
        for content in results
        for row in content["rows"]
    }


def _scores(row: dict[str, Any], decimals: int) -> list[str]:
    """Student alone, method and gain."""
    if not row:
        return ["", "", ""]
    alone = row.get("student_AP", [])
    over_alone = gain(row["AP"], alone, decimals) if alone else ""
    return [_metrics(row, "student_", decimals), _metrics(row, "", decimals), over_alone]


def _metrics(row: dict[str, Any], part: str, decimals: int) -> str:
    """AP / AP50 / AP75, as far as the row has them; ``part``: "", "teacher_" or "student_"."""
    return " / ".join(summary(row[part + name], decimals) for name in METRICS if row.get(part + name))


def _costs(row: dict[str, Any]) -> list[str]:
    """Best AP, number of seeds, time and memory of our run."""
    if not row:
        return [""] * 4
    shown = [("best_AP", 1), ("seconds_per_iteration", 2), ("memory_mib", 0)]
    best, seconds, memory = (summary(row[name], decimals) if name in row else "" for name, decimals in shown)
    return [best, str(len(row["AP"])), seconds, memory]


def _provenance(content: dict[str, Any]) -> str:
    return f"Ours: `{content['command']}` on {described(content['hardware'], content['versions'])}.\n"
