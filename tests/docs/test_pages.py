"""What the pages name exists: configurations, files, keys and commands."""

from __future__ import annotations

import json
import re
import shlex
from statistics import fmean

import pytest
from detectron2.config import get_cfg

from classification.config import get_config
from kd_det.cli import VERBS
from kd_det.common.config_files import find_config, leaves
from kd_det.common.tables import paired_difference, summary
from kd_det.config import add_kd_config
from kd_det.modeling import terms  # noqa: F401  (their keys are part of the configuration)
from tests.conftest import ROOT

CONFIG = re.compile(r"(?<![\w/])(?:configs/)?((?:coco|digits_det|digits|cifar100|imagenet|cub200)/[\w/]+\.yaml)")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KEY = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*(?:\.[A-Z][A-Z0-9_]*)+\b")
# Files and keys of the reader's own, and of the packages that readers come from.
OWN = {"KD.P3", "KD.P3.WEIGHT", "KD.JS.TEMPERATURE", "KD.JS.WEIGHT", "MAP_PKD.WEIGHT"}
MIGRATION = "migration.md"
PLACEHOLDER = re.compile("METHOD|NAME|PAIR")


def keys() -> set[str]:
    cfg = get_cfg()
    add_kd_config(cfg)
    full = {key for key, _ in [*leaves(cfg), *leaves(get_config())]}
    return full | {key.rpartition(".")[0] for key in full} | OWN


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    for name in CONFIG.findall(text):
        if not PLACEHOLDER.search(name) and (page.name != MIGRATION or "/dkd/" not in name):
            find_config(name)
    for name in re.findall(r"(?<![\w/.])((?:tools|kd_det|classification|tests)/[\w/]+\.py)\b", text):
        if not PLACEHOLDER.search(name) and page.name != MIGRATION:
            assert (ROOT / name).is_file(), name
    for link in re.findall(r"\]\(((?:docs/)?[\w./-]+)(?:#[\w.-]+)?\)", text):
        assert (page.parent / link).exists(), link
    if page.name != MIGRATION:
        known = keys()
        for key in KEY.findall(text):
            assert key in known, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_verbs(page):
    for line in re.findall(r"^kd-det .+$", page.read_text(), re.MULTILINE):
        verb = shlex.split(line.rstrip("\\"), comments=True)[1]
        assert verb in VERBS or verb == "--help", line


def test_the_digits_table_is_that_of_the_results():
    page = (ROOT / "docs" / "benchmarks.md").read_text().partition("## Classification accuracy")[2]
    lines = page.partition("| method |")[2].partition("\n\n")[0].splitlines()[2:]
    shown = sorted([cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines)
    runs = json.loads((ROOT / "results" / "classification_digits.json").read_text())["runs"]
    assert all(len(run["seeds"]) == 5 for run in runs)
    assert shown == sorted(
        [summary(run["last_top1"], 2), summary(run["best_top1"], 2), f"{run['extra_parameters']:,}"] for run in runs
    )


def results_of(name: str) -> dict:
    return json.loads((ROOT / "results" / f"digits_det_{name}.json").read_text())


def test_the_table_of_a_foreign_teacher_is_that_of_the_results():
    content = results_of("foreign_teacher")
    alone = content["rows"][0]["AP"]
    assert table_of("docs/stored.md", "| student | AP | Δ |") == {
        row["title"].removeprefix("student "): [
            summary(row["AP"]), "" if row["AP"] is alone else str(paired_difference(row["AP"], alone)),
        ]
        for row in content["rows"]
    }  # fmt: skip
    text = (ROOT / "docs" / "stored.md").read_text()
    boxes = content["boxes_per_image"]
    assert f"(AP {content['teacher_AP']:.1f})" in text
    assert f"has {boxes['winners.json']:.1f} boxes an image, the others {boxes['vectors.json']:.1f}." in text


def test_the_short_table_of_students_trained_for_long_is_that_of_the_results():
    arms = {
        "live DKD": "dkd", "live DKD and the live teacher's boxes": "live_dkd_teacher_boxes",
        "stored DKD": "stored_dkd", "stored DKD, four times as many images without labels": "unlabeled",
    }  # fmt: skip
    studies = [
        {row["arm"]: row["AP"] for row in results_of(name)["rows"]} for name in ("converged_6400", "converged")
    ]
    assert table_of("docs/stored.md", "| student | trained alone") == {
        name: [str(paired_difference(aps[arm], aps["student_longer"])) for aps in studies] for name, arm in arms.items()
    }


def table_of(page: str, header: str) -> dict[str, list[str]]:
    """The rows of the first table of a page whose first line starts so, by their first cell."""
    lines = (ROOT / page).read_text().partition(f"\n{header}")[2].partition("\n\n")[0].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: values for name, *values in cells}


@pytest.mark.parametrize(
    ("page", "columns"),
    [("README.md", {"AP": 1}), ("docs/choosing.md", {"AP": 1, "AP50": 1, "AP75": 1, "memory_mib": 0})],
)
def test_the_table_of_all_terms_is_that_of_the_results(page, columns):
    runs = results_of("demo")["results"]
    expected = {
        name: [summary([run[key] for run in of_arm], decimals) for key, decimals in columns.items()]
        for name, of_arm in runs.items()
    }
    assert table_of(page, "| model | AP |") == expected


def test_the_tables_of_stored_knowledge_are_those_of_the_results():
    names = {
        "alone": "student alone", "live KD": "student + KD", "live DKD": "student + DKD",
        "the teacher's boxes, no KD term": "student + teacher's boxes",
        "live DKD and the live teacher's boxes": "student + DKD + teacher's boxes",
        "stored DKD": "student + stored DKD", "stored KD": "student + stored KD",
    }  # fmt: skip
    runs = results_of("stored")["results"]
    assert table_of("docs/stored.md", "| student | AP | peak") == {
        name: [summary([run[key] for run in runs[arm]], decimals) for key, decimals in (("AP", 1), ("memory_mib", 0))]
        for name, arm in names.items()
    }
    rows = {row["title"]: row["AP"] for row in results_of("few_labels")["rows"]}
    assert table_of("docs/stored.md", "| student | AP | to all") == {
        name: [summary(aps), f"{fmean(aps) / fmean(rows['all labels']):.0%}".replace("%", " %")]
        for name, aps in rows.items()
    }


@pytest.mark.parametrize(
    ("name", "before", "lengths"), [("converged_6400", 6400, [240, 396]), ("converged", 12800, [480, 796])]
)
def test_the_tables_of_a_student_trained_for_long_are_those_of_the_results(name, before, lengths):
    content = results_of(name)
    alone, longer = (row["AP"] for row in content["rows"][:2])
    single = {"teacher": "teacher_AP", "before": "start_AP", f"alone, {before:,} more iterations": "doubled_AP"}
    assert content["search"]["student_iterations"] == content["search"]["teacher_iterations"] == before
    assert [row["iterations"] for row in content["rows"][:2]] == lengths
    page = (ROOT / "docs" / "choosing.md").read_text()
    assert f"After {before:,} iterations alone, a round of {lengths[0]} (same time: {lengths[1]}):" in page
    expected = {name: ["", "", f"{content[ap]:.1f}", "", ""] for name, ap in single.items()}
    for row in content["rows"]:
        cells = [summary(row[mark]) for mark in ("AP_quarter", "AP_half", "AP")]
        gain, in_time = (str(paired_difference(row["AP"], baseline)) for baseline in (alone, longer))
        same = row["AP"] is alone, row["AP"] is longer
        cells += ["" if same[0] else gain, "" if any(same) else in_time]
        expected[row["title"].removeprefix("student ").removeprefix("+ ")] = cells
    assert table_of("docs/choosing.md", f"| from {before:,} | AP after ¼") == expected
