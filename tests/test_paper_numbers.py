"""Every number in results/ that is from a paper whose tables we have equals that paper's, and none is left out."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

import pytest

from tests.conftest import ROOT

# Zhao et al. 2022 and Wang et al. 2024, typed from the papers' texts, apart from results/.
TABLES = json.loads((ROOT / "tests" / "paper_tables.json").read_text())
NAMES = {"ablation_beta": "ablation of β", "ablation_alpha": "ablation of α"}
DETECTION = ("zhao2022", "table10")
NUMBERS = ("top1", "top5", "gap")
SETTINGS = ("noise", "confidence_range", "alpha", "beta", "temperature", "epochs", "on")
# Rows of gains, which are no results of their own.
GAINS = {"delta DKD - KD": ("DKD", ["KD"]), "delta MCLD - best logits method": ("MCLD", None)}
MISFITS = {("wang2024", "table2", "wrn_40_2", "wrn_40_1"), ("wang2024", "table2", "resnet56", "resnet20")}
LOGITS = ("KD", "CTKD", "CTKD+KD", "DKD", "DOT+DKD*", "LSKD+MLKD*", "LSKD+DKD*")


@cache
def results(paper: str):
    return json.loads((ROOT / "results" / f"classification_{paper}.json").read_text())


def name_of(key: str) -> str:
    """A table's name in results/: "6" for table6, "A.1" for tableA1."""
    return NAMES.get(key, key.removeprefix("table").replace("A", "A."))


def printed(paper: str) -> Counter:
    """What the paper prints: (table, teacher, student, method, settings, numbers), each row once."""
    found = Counter()
    for key, table in TABLES[paper].items():
        if (paper, key) == DETECTION:
            continue
        name = name_of(key)
        in_a_study = any("setting" in row for row in results(paper)["rows"] if row["table"] == name)
        for row in table["rows"]:
            method, teacher, student = row.get("method", "DKD"), row["teacher"], row.get("student", "")
            if method in GAINS:
                continue
            numbers = tuple((number, row[number]) for number in NUMBERS if row.get(number) is not None)
            settings = tuple(sorted((key, row[key]) for key in SETTINGS if key in row))
            if method.startswith("teacher") or (method == "alone" and "on" in row):
                teacher, student = "", teacher if method.startswith("teacher") else student
                method = "alone"
            if method == "alone" and not in_a_study:
                # A model alone: in many columns of many tables, with the same number.
                found["", "", student, "alone", (), numbers] = 1
            else:
                found[name, teacher, student, method, settings, numbers] += 1
        if "teacher_top1" in table:
            found[name, "", table["rows"][0]["teacher"], "alone", (), (("top1", table["teacher_top1"]),)] += 1
    return found


def recorded(paper: str) -> Counter:
    """What results/ have, in the same form."""
    found = Counter()
    for row in results(paper)["rows"]:
        setting = row.get("setting", {})
        values = {**setting, **{key: value for key, value in row.items() if value is not None}}
        numbers = tuple((number, values[number]) for number in NUMBERS if number in values)
        settings = tuple(sorted((key, setting[key]) for key in SETTINGS if key in setting))
        alone = "setting" not in row and not row["teacher"]
        found["" if alone else row["table"], row["teacher"], row["student"], row["method"], settings, numbers] += 1
    return found


@pytest.mark.parametrize("paper", TABLES)
def test_every_number_is_the_papers(paper):
    theirs, ours = printed(paper), recorded(paper)
    assert sum(theirs.values()) > 200
    assert ours - theirs == Counter(), "in results/ and not in the paper"
    assert theirs - ours == Counter(), "in the paper and not in results/"


def test_every_detectors_number_is_the_papers():
    table = TABLES["zhao2022"]["table10"]["rows"]
    theirs = {(row["teacher"], row["student"], row["method"]): row for row in table}
    rows = json.loads((ROOT / "results" / "coco_zhao2022.json").read_text())["rows"]
    pairs = {(row["teacher"], row["student"]) for row in rows}
    methods = {method for *_, method in theirs} - {"teacher", "student"}
    assert {(row["teacher"], row["student"], row["method"]) for row in rows} == {
        (*pair, method) for pair in pairs for method in methods
    }
    assert len(pairs) == 3
    for row in rows:
        pair = row["teacher"], row["student"]
        for metric in ("AP", "AP50", "AP75"):
            for part, method in (("teacher_", "teacher"), ("student_", "student"), ("", row["method"])):
                assert row[part + metric] == [theirs[(*pair, method)][metric]], (pair, method, metric)


@pytest.mark.parametrize("paper", TABLES)
def test_the_gains_that_the_paper_prints_are_differences_of_its_numbers(paper):
    """A check of the copy: the paper's notes name the gains that do not fit."""
    misfits = {}
    for key, table in TABLES[paper].items():
        for row in table["rows"]:
            pair = row["teacher"], row.get("student")
            same = {other["method"]: other["top1"] for other in table["rows"]
                    if (other["teacher"], other.get("student")) == pair and "top1" in other}  # fmt: skip
            if row.get("method") in GAINS:
                method, others = GAINS[row["method"]]
                best = max(same[name] for name in others or LOGITS if same.get(name) is not None)
                if abs(same[method] - best - row["top1"]) > 0.005:
                    misfits[(key, *pair)] = row["top1"], round(same[method] - best, 2)
    notes = " ".join(results(paper)["notes"])
    assert misfits.keys() == {(table, *pair) for source, table, *pair in MISFITS if source == paper}
    assert all(f"{gain:+}" in notes for gain, _ in misfits.values())


def test_no_number_is_from_memory():
    pages = [ROOT / "MODEL_ZOO.md", *(ROOT / "results").glob("*.json")]
    assert not [path for path in pages if "†" in path.read_text()]
    for paper in TABLES:
        content = results(paper)
        assert all(row["checked"] == "paper" and "unchecked" not in row for row in content["rows"])


@pytest.mark.parametrize(
    ("file", "table", "words"),
    [
        ("coco_zhao2022", "", "A probable misprint: AP75 34.00"),
        ("classification_zhao2022", "9", "A probable misprint: the paper calls the student MobileNet-V2"),
        ("classification_wang2024", "2", "71.47 here and 71.36 in table 6"),
        ("classification_wang2024", "6", "71.36 here and 71.47 in table 2"),
    ],
)
def test_misprints_are_named_beside_their_table(file, table, words):
    content = json.loads((ROOT / "results" / f"{file}.json").read_text())
    texts = [content["tables"][table]["caption"]] if table else content["notes"]
    assert any(words in text for text in texts)
    assert words in (ROOT / "MODEL_ZOO.md").read_text()
