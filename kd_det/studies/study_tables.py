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
SEARCH = ("search", "scenes", "train_images", "share", "student_opts", "teacher_opts", "gain", "time_ratio", "start_AP")
REQUIRED = {
    CONVERGED: {
        "": (*SHARED, *SEARCH),
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
    rows, search = {row["arm"]: row for row in content["rows"]}, content["search"]
    alone, longer = rows[ALONE], rows[LONGER]
    headers = ["model", "iterations", "AP after ¼", "Δ", "AP after ½", "Δ", "AP", "Δ", "Δ, same time", "s/iter"]
    cells: list[list[object]] = []
    for name, network in (("teacher", "teacher"), ("student before the round", "student")):
        ap = content["teacher_AP" if network == "teacher" else "start_AP"]
        cells.append([name, f"{search[f'{network}_iterations']:,}", *[""] * 4, f"{ap:.1f}", *[""] * 3])
    for row in content["rows"]:
        line: list[object] = [row["title"], f"+{row['iterations']:,}"]
        for mark in ("AP_quarter", "AP_half", "AP"):
            line += [summary(row[mark]), "" if row is alone else str(paired_difference(row[mark], alone[mark]))]
        in_time = "" if row in (alone, longer) else str(paired_difference(row["AP"], longer["AP"]))
        cells.append([*line, in_time, summary(row["seconds_per_iteration"], 2)])
    methods = [row for arm, row in rows.items() if arm not in (ALONE, LONGER)]
    lines = [
        f"### Digits scenes ({content['scenes']}), at convergence", "", markdown(cells, headers, text_columns=1), "",
        f"{_search_text(content)} {len(content['seeds'])} seeds of the last round, all from the same weights. "
        f"{INTERVALS} *Same time*: the student alone in a round {content['time_ratio']:.2f} times as long, which is "
        "what the slowest method takes.", "", *_verdict(methods, alone, longer, content["start_AP"]), "",
    ]  # fmt: skip
    return "\n".join([*lines, _provenance(content)])


def _search_text(content: dict[str, Any]) -> str:
    search = content["search"]
    teacher, student = (
        ", ".join(f"{ap:.1f} after {length:,}" for length, ap in search[who]) for who in ("teacher", "student")
    )
    images = content["train_images"]
    still = " (it still gains, and was taken as it is)" if search["teacher_gains"] else ""
    return (
        f"The teacher learns {images:,} scenes, the student {round(content['share'] * images):,} of them. Both were "
        "trained alone in rounds, each a whole schedule from the weights of the round before, which doubled the "
        f"iterations until a round gained less than {content['gain']:g} AP on tuning scenes that are not reported. "
        f"There the teacher has AP {teacher} iterations{still}, the student {student}; the teacher is "
        f"{search['gap']:.1f} AP above. "
        "Then every arm trains the student for one more round. Student: "
        f"`{' '.join(content['student_opts'])}`; teacher: `{' '.join(content['teacher_opts'])}`."
    )


def _verdict(
    methods: Sequence[dict[str, Any]], alone: dict[str, Any], longer: dict[str, Any], start: float
) -> list[str]:
    """What the intervals say, as a list."""
    ends = {row["title"]: paired_difference(row["AP"], alone["AP"]) for row in methods}
    begins = {row["title"]: paired_difference(row["AP_quarter"], alone["AP_quarter"]) for row in methods}
    in_time = {row["title"]: paired_difference(row["AP"], longer["AP"]) for row in methods}
    if any(difference.half_width is None for difference in ends.values()):
        return ["- One seed has no interval: nothing is shown."]
    more, most = (paired_difference(row["AP"], [start] * len(row["AP"])) for row in (alone, longer))
    holds = [name for name, gain in ends.items() if gain.is_above]
    groups = {
        "Above the student alone after the whole round": holds,
        "Of these, above the student alone given the same time": [name for name in holds if in_time[name].is_above],
        "Only faster: above the student alone after ¼ of the round, not shown after all of it": [
            name for name, gain in begins.items() if gain.is_above and name not in holds
        ],
        "No difference shown at either point": [
            name for name, gain in ends.items() if not (gain.excludes_zero or begins[name].excludes_zero)
        ],
        "Below the student alone after the whole round": [name for name, gain in ends.items() if gain.is_below],
    }
    return [
        f"- The student alone changes by {more} AP in the round, and by {most} in the longer one.",
        *(f"- {text}: {', '.join(names) or 'none'}." for text, names in groups.items()),
    ]


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
