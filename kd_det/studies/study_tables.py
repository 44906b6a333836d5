"""The sections of MODEL_ZOO.md about convergence and few labels, from the results files of the two studies.

Results files with ``kind`` ``digits_converged`` and ``digits_few_labels``: ``kd_det.studies.converged`` and
``kd_det.studies.few_labels`` write them. Each row has ``arm``, ``title`` and lists with one entry a seed, in the order
of ``seeds``; arms are compared seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from kd_det.common import tables
from kd_det.common.environment import described
from kd_det.common.tables import markdown, paired_difference, summary

CONVERGED, FEW_LABELS = "digits_converged", "digits_few_labels"
ALONE, LONGER = "student", "student_longer"
FEW, ALL = "few", "all"
SHARED = ("source", "rows", "seeds", "hardware", "versions", "command", "teacher_AP")
REQUIRED = {
    CONVERGED: {
        "": (*SHARED, "search", "scenes", "train_images", "student_opts", "teacher_opts", "gain", "time_ratio"),
        "rows": ("arm", "title", "iterations", "AP_quarter", "AP_half", "AP", "seconds_per_iteration", "memory_mib"),
    },
    FEW_LABELS: {
        "": (*SHARED, "schedule", "labelled_images", "images", "teacher_labels"),
        "rows": ("arm", "title", "AP"),
    },
}
INTERVALS = (
    "Δ is the mean of the differences of runs with the same seed, in brackets its 95 % interval (Student's t over the "
    "seeds). Each interval stands for itself: of twenty differences that are zero, one is expected outside."
)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of both studies in a folder; see ``kd_det.common.tables.read_results``."""
    return tables.read_results(
        folder, lambda content: content.get("kind") in REQUIRED, lambda content: REQUIRED[content["kind"]], __name__
    )


def render(results: Sequence[dict[str, Any]]) -> str:
    """The sections; "" without results.

    Args:
        results: contents of results files.
    """
    sections = {CONVERGED: _converged, FEW_LABELS: _few_labels}
    shown = [sections[content["kind"]](content) for content in results]
    return "\n".join(["## Studies on the digits scenes", "", *shown]) if shown else ""


def _converged(content: dict[str, Any]) -> str:
    rows = {row["arm"]: row for row in content["rows"]}
    alone, longer = rows[ALONE], rows[LONGER]
    headers = ["model", "iterations", "AP after ¼", "Δ", "AP after ½", "Δ", "AP", "Δ", "Δ, same time", "s/iter"]
    teacher = ["teacher", f"{content['search']['teacher_iterations']:,}", *[""] * 4, f"{content['teacher_AP']:.1f}"]
    cells: list[list[object]] = [[*teacher, *[""] * (len(headers) - len(teacher))]]
    for row in content["rows"]:
        line: list[object] = [row["title"], f"{row['iterations']:,}"]
        for mark in ("AP_quarter", "AP_half", "AP"):
            line += [summary(row[mark]), "" if row is alone else str(paired_difference(row[mark], alone[mark]))]
        in_time = "" if row in (alone, longer) else str(paired_difference(row["AP"], longer["AP"]))
        cells.append([*line, in_time, summary(row["seconds_per_iteration"], 2)])
    methods = [row for arm, row in rows.items() if arm not in (ALONE, LONGER)]
    lines = [
        f"### Digits scenes ({content['scenes']}), at convergence", "", markdown(cells, headers, text_columns=1), "",
        f"{_settings(content)} {len(content['seeds'])} seeds. {INTERVALS} *Same time*: the student alone, trained "
        f"{content['time_ratio']:.2f} times as long, which is what the slowest method takes.", "",
        *_verdict(methods, alone, longer), "",
    ]  # fmt: skip
    return "\n".join([*lines, _provenance(content)])


def _settings(content: dict[str, Any]) -> str:
    search = content["search"]
    teacher, student = (
        ", ".join(f"{ap:.1f} after {length:,}" for length, ap in search[who]) for who in ("teacher", "student")
    )
    return (
        f"{content['train_images']:,} scenes for training. Schedules were doubled until that gained less than "
        f"{content['gain']:g} AP on tuning scenes that are not reported: the teacher has AP {teacher} iterations, the "
        f"student alone {student}; the teacher is {search['gap']:.1f} AP above there. Student: "
        f"`{' '.join(content['student_opts'])}`; teacher: "
        f"`{' '.join(content['teacher_opts']) or 'digits_det/teacher.yaml'}`."
    )


def _verdict(methods: Sequence[dict[str, Any]], alone: dict[str, Any], longer: dict[str, Any]) -> list[str]:
    """What the intervals say, as a list."""
    ends = {row["title"]: paired_difference(row["AP"], alone["AP"]) for row in methods}
    begins = {row["title"]: paired_difference(row["AP_quarter"], alone["AP_quarter"]) for row in methods}
    in_time = {row["title"]: paired_difference(row["AP"], longer["AP"]) for row in methods}
    holds = [name for name, gain in ends.items() if gain.is_above]
    groups = {
        "Gains that hold after the whole schedule": holds,
        "Of these, above the student alone given the same time": [name for name in holds if in_time[name].is_above],
        "Only faster learning: above the student alone after ¼, not shown after the whole schedule": [
            name for name, gain in begins.items() if gain.is_above and name not in holds
        ],
        "No difference shown at either point": [
            name for name, gain in ends.items() if not (gain.excludes_zero or begins[name].excludes_zero)
        ],
        "Below the student alone after the whole schedule": [name for name, gain in ends.items() if gain.is_below],
    }
    if any(difference.half_width is None for difference in ends.values()):
        return ["- One seed has no interval: nothing is shown."]
    return [f"- {text}: {', '.join(names) or 'none'}." for text, names in groups.items()]


def _few_labels(content: dict[str, Any]) -> str:
    rows = {row["arm"]: row for row in content["rows"]}
    few, everything = rows[FEW]["AP"], rows[ALL]["AP"]
    headers = ["student", "AP", "share of all labels' AP", "Δ to few labels", "Δ to all labels", "seeds"]
    cells = [
        [
            row["title"], summary(row["AP"]), f"{fmean(row['AP']) / fmean(everything):.1%}",
            "" if arm == FEW else str(paired_difference(row["AP"], few)),
            "" if arm == ALL else str(paired_difference(row["AP"], everything)), len(row["AP"]),
        ]
        for arm, row in rows.items()
    ]  # fmt: skip
    labels = f"{content['labelled_images']:,} of {content['images']:,}"
    taught = "all labels" if content["teacher_labels"] == ALL else "the few labels"
    return "\n".join(
        [
            f"### Digits scenes with few labels, teacher on {taught}, {content['schedule']}", "",
            markdown(cells, headers, text_columns=1), "",
            f"Few labels: {labels} images, the same in all runs. The teacher (AP {content['teacher_AP']:.1f}) was "
            f"trained on {taught}. {INTERVALS}", "", _provenance(content),
        ]
    )  # fmt: skip


def _provenance(content: dict[str, Any]) -> str:
    return f"Ours: `{content['command']}` on {described(content['hardware'], content['versions'])}.\n"
