"""The sections of MODEL_ZOO.md about a student trained for long, few labels and a foreign teacher, from results files.

They have the ``kind`` ``digits_converged``, ``digits_few_labels`` and ``digits_foreign_teacher``:
``kd_det.studies.converged``, ``few_labels`` and ``foreign_teacher`` write them. Each row has ``arm``, ``title`` and
lists with one entry a seed, in the order of ``seeds``; arms are compared seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from kd_det.common import tables
from kd_det.common.environment import described
from kd_det.common.tables import Difference, markdown, paired_difference, summary

CONVERGED, FEW_LABELS, FOREIGN = "digits_converged", "digits_few_labels", "digits_foreign_teacher"
ALONE, LONGER = "student", "student_longer"
FEW, ALL = "few", "all"
SHARED = ("source", "rows", "seeds", "hardware", "versions", "command", "teacher_AP")
SETTINGS = ("scenes", "train_images", "share", "student_opts", "teacher_opts", "method_opts", "gain")
FOUND = ("search", "time_ratio", "start_AP", "doubled_AP")
REQUIRED = {
    CONVERGED: {
        "": (*SHARED, *SETTINGS, *FOUND),
        "rows": ("arm", "title", "iterations", "AP_quarter", "AP_half", "AP", "seconds_per_iteration", "memory_mib"),
    },
    FEW_LABELS: {
        "": (*SHARED, "schedule", "labelled_images", "images", "teacher_labels"),
        "rows": ("arm", "title", "AP"),
    },
    FOREIGN: {
        "": (*SHARED, "schedule", "teacher_iterations", "boxes_per_image"),
        "rows": ("arm", "title", "AP", "AP50"),
    },
}
INTERVALS = (
    "Δ is the mean of the differences of runs with the same seed, in brackets its 95 % interval (Student's t over the "
    "seeds). Each interval stands for itself: of twenty differences that are zero, one is expected outside."
)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of these studies in a folder; see ``kd_det.common.tables.read_results``."""
    return tables.read_results(
        folder, lambda content: content.get("kind") in REQUIRED, lambda content: REQUIRED[content["kind"]], __name__
    )


def render(results: Sequence[dict[str, Any]]) -> str:
    """The sections; "" without results.

    Args:
        results: contents of results files.
    """
    sections = {CONVERGED: _converged, FEW_LABELS: _few_labels, FOREIGN: _foreign}
    shown = [sections[content["kind"]](content) for content in results]
    return "\n".join(["## Studies on the digits scenes", "", *shown]) if shown else ""


def _converged(content: dict[str, Any]) -> str:
    rows, search = {row["arm"]: row for row in content["rows"]}, content["search"]
    alone, longer = rows[ALONE], rows[LONGER]
    before = f"{search['student_iterations']:,}"
    headers = ["model", "iterations", "AP after ¼", "Δ", "AP after ½", "Δ", "AP", "Δ", "Δ, same time", "s/iter"]
    single = {
        "teacher": (f"{search['teacher_iterations']:,}", "teacher_AP"),
        "student before": (before, "start_AP"),
        "student alone, all its training doubled": (f"+{before}", "doubled_AP"),
    }
    cells: list[list[object]] = [
        [name, length, *[""] * 4, f"{content[ap]:.1f}", *[""] * 3] for name, (length, ap) in single.items()
    ]
    for row in content["rows"]:
        line: list[object] = [row["title"], f"+{row['iterations']:,}"]
        for mark in ("AP_quarter", "AP_half", "AP"):
            line += [summary(row[mark]), "" if row is alone else str(paired_difference(row[mark], alone[mark]))]
        in_time = "" if row in (alone, longer) else str(paired_difference(row["AP"], longer["AP"]))
        cells.append([*line, in_time, summary(row["seconds_per_iteration"], 2)])
    lines = [
        f"### Digits scenes ({content['scenes']}), a student trained alone for {before} iterations", "",
        markdown(cells, headers, text_columns=1), "",
        f"{_search_text(content)} {len(content['seeds'])} seeds, all from the same weights. {INTERVALS} *Same time*: "
        f"the student alone for {content['time_ratio']:.2f} times as many iterations, which is what the slowest method "
        "takes.", "", *_verdict(content), "",
    ]  # fmt: skip
    return "\n".join([*lines, _provenance(content)])


def _search_text(content: dict[str, Any]) -> str:
    search = content["search"]
    teacher, student = (
        ", ".join(f"{ap:.1f} after {length:,}" for length, ap in search[who]) for who in ("teacher", "student")
    )
    images = content["train_images"]
    return (
        f"The teacher learns {images:,} scenes, the student {round(content['share'] * images):,} of them. Both were "
        "trained alone in rounds, each a whole schedule from the weights of the round before, which doubles the "
        f"iterations. On tuning scenes that are not reported the teacher has AP {teacher} iterations, the student "
        f"{student}: their last rounds gain {search['teacher_gain']:.1f} and {search['student_gain']:.1f} AP, and the "
        f"teacher is {search['gap']:.1f} AP above. All arms start from the student before its last round. Student: "
        f"`{' '.join(content['student_opts'])}`; teacher: `{' '.join(content['teacher_opts'])}`; with a method: "
        f"`{' '.join(content['method_opts']) or 'nothing more'}`."
    )


def _verdict(content: dict[str, Any]) -> list[str]:
    """What the intervals say, as a list."""
    rows, search = {row["arm"]: row for row in content["rows"]}, content["search"]
    alone, longer = rows.pop(ALONE), rows.pop(LONGER)
    doubled = f"{search['student_iterations']:,} iterations"

    def above(ap: float, row: dict[str, Any]) -> Difference:
        return paired_difference(row["AP"], [ap] * len(row["AP"]))

    ends = {row["title"]: paired_difference(row["AP"], alone["AP"]) for row in rows.values()}
    begins = {row["title"]: paired_difference(row["AP_quarter"], alone["AP_quarter"]) for row in rows.values()}
    in_time = {row["title"]: paired_difference(row["AP"], longer["AP"]) for row in rows.values()}
    if any(difference.half_width is None for difference in ends.values()):
        return ["- One seed has no interval: nothing is shown."]
    to_doubled = {row["title"]: above(content["doubled_AP"], row) for row in rows.values()}
    holds = [name for name, gain in ends.items() if gain.is_above]
    groups = {
        "Above the student alone": holds,
        "Of these, above the student alone given the same time": [name for name in holds if in_time[name].is_above],
        f"Of these, above the student alone given {doubled} (one run)": [
            name for name in holds if in_time[name].is_above and to_doubled[name].is_above
        ],
        "Only faster: above the student alone after ¼, not shown at the end": [
            name for name, gain in begins.items() if gain.is_above and name not in holds
        ],
        "No difference shown at the end, and not above after ¼": [
            name for name, gain in ends.items() if not (gain.excludes_zero or begins[name].is_above)
        ],
        "Below the student alone at the end": [name for name, gain in ends.items() if gain.is_below],
    }
    gained = content["doubled_AP"] - content["start_AP"]
    return [
        f"- The student alone changes by {above(content['start_AP'], alone)} AP, given the same time by "
        f"{above(content['start_AP'], longer)}, and given {doubled} by {gained:+.1f}.",
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


def _foreign(content: dict[str, Any]) -> str:
    alone = next(row["AP"] for row in content["rows"] if row["arm"] == ALONE)
    cells = [
        [
            row["title"], summary(row["AP"]), "" if row["arm"] == ALONE else str(paired_difference(row["AP"], alone)),
            summary(row["AP50"]), len(row["AP"]),
        ]
        for row in content["rows"]
    ]  # fmt: skip
    boxes = " and ".join(f"{count:.1f} in `{name}`" for name, count in content["boxes_per_image"].items())
    return "\n".join(
        [
            f"### Digits scenes, torchvision's Faster R-CNN as the teacher, {content['schedule']}", "",
            markdown(cells, ["student", "AP", "Δ", "AP50", "seeds"], text_columns=1), "",
            f"The teacher (AP {content['teacher_AP']:.1f}, {content['teacher_iterations']:,} iterations) is known by "
            f"its predictions alone: boxes of an image: {boxes}. {INTERVALS}", "", _provenance(content),
        ]
    )  # fmt: skip


def _provenance(content: dict[str, Any]) -> str:
    return f"Ours: `{content['command']}` on {described(content['hardware'], content['versions'])}.\n"
