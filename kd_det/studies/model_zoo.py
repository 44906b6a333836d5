"""Renders ``results/*.json`` as MODEL_ZOO.md: the papers' rows beside ours, ours blank where not run.

A results file: ``benchmark`` (title), ``source`` ("ours", or the paper), ``schedule``, ``rows``, and for ours
``hardware``, ``versions`` and ``command``. A row: ``teacher``, ``student``, ``method``, ``config``, and lists with one
entry a seed: ``teacher_AP`` (one), ``student_AP``, ``AP``, and for ours ``best_AP``, ``seconds_per_iteration``,
``memory_mib``. Files with a ``kind`` are of other benchmarks, which render them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kd_det.common.environment import described
from kd_det.common.errors import SetupError
from kd_det.common.tables import summary

OURS = "ours"
REQUIRED = {"": ("benchmark", "source", "schedule", "rows"), "rows": ("teacher", "student", "method", "config", "AP")}
HEAD = """# Model zoo

Made by `python tools/make_tables.py` from `results/*.json`; edit those, not this page. AP is COCO AP in percent after
the last iteration, mean ± sample standard deviation where there are several seeds; the best AP on the way is beside it,
chosen on the evaluated images and so optimistic. Δ is against the student alone. Blank: not run by us. A detector is
trained by `python tools/train_net.py --config-file` and the last cell of its row.
"""


def render(results: Sequence[dict[str, Any]]) -> str:
    """The page.

    Args:
        results: contents of results files; those of one ``benchmark`` share a table.
    """
    titles = dict.fromkeys(content["benchmark"] for content in results)
    return "\n".join([HEAD, *(_section(title, [r for r in results if r["benchmark"] == title]) for title in titles)])


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results files of a folder, by name.

    Raises:
        SetupError: the folder has none of any kind, or one lacks a field.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise SetupError(f"there are no results in {str(folder)!r}; name the folder with the *.json files")
    contents = {path: json.loads(path.read_text()) for path in paths}
    contents = {path: content for path, content in contents.items() if "kind" not in content}
    for path, content in contents.items():
        rows = [("", content), *(("rows", row) for row in content.get("rows", []))]
        missing = {f"{part} {name}".strip() for part, item in rows for name in REQUIRED[part] if name not in item}
        if missing:
            raise SetupError(f"{path} lacks {', '.join(sorted(missing))}; see kd_det/studies/model_zoo.py")
    return list(contents.values())


def _section(title: str, results: Sequence[dict[str, Any]]) -> str:
    papers = [content for content in results if content["source"] != OURS]
    ours = [content for content in results if content["source"] == OURS]
    published, run = (_by_key(part) for part in (papers, ours))
    headers = ["teacher", "student", "method", "schedule", "teacher AP"]
    if papers:
        source = ", ".join(dict.fromkeys(content["source"] for content in papers))
        headers += [f"student alone ({source})", source, "Δ"]
    headers += ["student alone (ours)", "ours", "Δ", "best AP", "seeds", "s/iter", "peak MiB", "config"]
    table = []
    for key in {**published, **run}:
        paper, row = published.get(key, {}), run.get(key, {})
        either = row or paper
        start = [*key, summary(either["teacher_AP"], 1 if row else 2) if "teacher_AP" in either else ""]
        theirs = _scores(paper, 2) if papers else []
        table.append([*start, *theirs, *_scores(row, 1), *_run(row), f"`{either['config']}`"])
    lines = [f"## {title}", "", tabulate(table, headers, tablefmt="github", disable_numparse=True), ""]
    return "\n".join([*lines, *(_provenance(content) for content in ours)])


def _by_key(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    return {_key(content, row): row for content in results for row in content["rows"]}


def _key(content: dict[str, Any], row: dict[str, Any]) -> tuple[str, str, str, str]:
    return row["teacher"], row["student"], row["method"], content["schedule"]


def _scores(row: dict[str, Any], decimals: int) -> list[str]:
    if not row:
        return ["", "", ""]
    alone = row.get("student_AP", [])
    gain = f"{statistics.fmean(row['AP']) - statistics.fmean(alone):+.{decimals}f}" if alone else ""
    return [summary(alone, decimals) if alone else "", summary(row["AP"], decimals), gain]


def _run(row: dict[str, Any]) -> list[str]:
    if not row:
        return [""] * 4
    shown = [("best_AP", 1), ("seconds_per_iteration", 2), ("memory_mib", 0)]
    best, seconds, memory = (summary(row[name], decimals) if name in row else "" for name, decimals in shown)
    return [best, str(len(row["AP"])), seconds, memory]


def _provenance(content: dict[str, Any]) -> str:
    software = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"Ours: `{content['command']}` on {described(content['hardware'])}; {software}.\n"
