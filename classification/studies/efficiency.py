"""What every distiller costs in a step, beside the accuracy that it gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from classification.composition import SDD_BASES
from classification.distillers import DISTILLERS
from classification.studies.steps import Arm
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.run_steps import read_json
from kd_det.common.tables import summary

REFERENCE = "dkd"


def all_arms() -> dict[str, Arm]:
    """By name: every distiller with its default settings, SDD over each of its bases; the plain student first."""
    arms = {
        name: Arm(name, ("DISTILLER", name)) for name in sorted(DISTILLERS, key=lambda name: (name != "none", name))
    }
    del arms["sdd"]
    return arms | {f"sdd_{base}": Arm(f"sdd_{base}", ("DISTILLER", "sdd", "SDD.BASE", base)) for base in SDD_BASES}


def choose_arms(names: Sequence[str]) -> list[Arm]:
    """The arms of these names, all where none is given; always DKD's, to which the others are compared.

    Raises:
        SetupError: there is none of a name.
    """
    arms = all_arms()
    for name in names:
        if name not in arms:
            raise SetupError(f"--methods: there is no {name!r}.{did_you_mean(name, arms)} Known: {', '.join(arms)}.")
    return [arm for name, arm in arms.items() if not names or name in names or name == REFERENCE]


def read_accuracies(path: Path, teacher: str, student: str) -> dict[str, Any]:
    """What a results file of tools/run_classification.py says of one pair of models.

    Args:
        teacher, student: the pair that is looked for; where the file does not have it, the one with most methods.

    Returns:
        {"teacher": ..., "student": ..., "data": ..., "top1": {name of an arm: [the last top-1 of each seed]}}.

    Raises:
        SetupError: it is no such file, or has no distilled student.
    """
    content = read_json(path)
    named = isinstance(content, dict) and content.get("kind") == "classification"
    if not named or not isinstance(content.get("runs"), list):
        raise SetupError(
            f"--results {str(path)!r} is no results file of tools/run_classification.py; make one with it, or give "
            "--results '' for the costs alone."
        )
    pairs: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in content["runs"]:
        if row["distiller"] != "none" and (name := arm_name(row)):
            pairs.setdefault((row["teacher"], row["student"]), {})[name] = row["last_top1"]
    if not pairs:
        raise SetupError(
            f"--results {str(path)!r} has no distilled student; run some with tools/run_classification.py."
        )
    pair = (teacher, student) if (teacher, student) in pairs else max(pairs, key=lambda pair: len(pairs[pair]))
    top1 = pairs[pair]
    for row in content["runs"]:
        if row["distiller"] == "none" and row["student"] == pair[1]:
            top1["none"] = row["last_top1"]
    return {"teacher": pair[0], "student": pair[1], "data": content.get("data"), "top1": top1}


def arm_name(row: dict[str, Any]) -> str | None:
    """Which arm a run was of: its method's; None where there is none of that name."""
    return row["method"] if row["method"] in all_arms() else None


def make_rows(measured: Iterable[dict[str, Any]], top1: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row a method: what ``compare_steps`` gave, with the ratio to DKD's step and the accuracies, if known."""
    rows = [{"method": result["title"], **result} for result in measured]
    reference = next(row["seconds"] for row in rows if row["method"] == REFERENCE)
    for row in rows:
        row |= {"ratio_to_dkd": row["seconds"] / reference, "last_top1": top1.get(row["method"])}
        del row["title"]
    return rows


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, the fastest first."""
    body = [
        [
            row["method"],
            f"{1000 * row['seconds']:.1f}",
            f"{row['ratio_to_dkd']:.2f}",
            f"{row['peak_memory_mib']:.0f}",
            row["extra_parameters"],
            f"{row['buffers_mib']:.1f}",
            summary(row["last_top1"], 2) if row["last_top1"] else "",
        ]
        for row in sorted(rows, key=lambda row: row["seconds"])
    ]
    headers = ["method", "step, ms", "to DKD", "peak MiB", "extra parameters", "buffers, MiB", "top-1"]
    alignment = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=alignment)


def points(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The scatter's data: the methods whose accuracy is known, most accurate first."""
    known = [row for row in rows if row["last_top1"]]
    return sorted(known, key=lambda row: -fmean(row["last_top1"]))
