"""Paired differences, and the two studies' sections of MODEL_ZOO.md, on results made by hand."""

from __future__ import annotations

import json
import sys

import make_tables
import pytest

from kd_det.common.errors import SetupError
from kd_det.common.tables import Difference, paired_difference
from kd_det.studies import converged, few_labels, foreign_teacher, study_tables
from kd_det.studies.study_tables import read_results, render

RECORD = {
    "source": "ours", "seeds": [1, 2, 3], "versions": {"torch": "9.9"}, "command": "run it", "teacher_AP": 81.25,
    "hardware": {"name": "a processor", "cpu_cores": 2, "torch_threads": 1, "runs_at_a_time": 2},
}  # fmt: skip


def row(arm, quarter, end, iterations=1600):
    aps = {"AP_quarter": quarter, "AP_half": quarter, "AP": end}
    costs = {"seconds_per_iteration": [0.25] * 3, "memory_mib": [900.0] * 3}
    return {"arm": arm, "title": arm.upper(), "iterations": iterations, **aps, **costs}


def converged_results(*rows):
    alone = row("student", [50.0, 52.0, 54.0], [70.0, 72.0, 74.0])
    longer = row("student_longer", [51.0, 53.0, 55.0], [70.5, 72.5, 74.5], 2200)
    search = {"teacher": [[400, 75.0], [800, 80.0], [1600, 80.5]], "student": [[1600, 70.0], [3200, 70.5]]}
    search |= {"teacher_iterations": 1600, "student_iterations": 1600, "gap": 10.0}
    search |= {"teacher_gain": 0.5, "student_gain": 0.5}
    content = {"kind": "digits_converged", "scenes": "usual", "train_images": 1500, "gain": 1.0, "time_ratio": 1.375}
    content |= {"student_opts": ["A.B", "8"], "teacher_opts": ["C.D", "4"], "method_opts": [], "search": search}
    content |= {"share": 0.2, "start_AP": 71.0, "doubled_AP": 71.5}
    return {**RECORD, **content, "rows": [alone, longer, *rows]}


def test_a_paired_difference_by_hand():
    # differences 1, 2, 3: mean 2, standard deviation 1; the 97.5 % quantile of t with 2 degrees of freedom is 4.3027
    difference = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert difference.mean == pytest.approx(2) and difference.half_width == pytest.approx(4.302653 / 3**0.5)
    assert str(difference) == "+2.0 [-0.5, +4.5]"
    assert not difference.is_above and not difference.is_below
    # a shift that all seeds share has no spread, however far the seeds are apart
    assert paired_difference([11.0, 41.0], [10.0, 40.0]) == Difference(1.0, 0.0)
    assert paired_difference([11.0], [10.0]) == Difference(1.0, None) and str(Difference(1.0, None)) == "+1.0"
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])


def test_intervals_on_either_side_of_zero():
    assert Difference(2.0, 1.0).is_above and not Difference(2.0, 1.0).is_below
    assert Difference(-2.0, 1.0).is_below and Difference(-2.0, 1.0).excludes_zero
    assert not Difference(2.0, None).excludes_zero


def test_the_page_says_what_holds_and_what_is_faster_learning():
    page = render(
        [
            converged_results(
                row("far", [55.0, 57.0, 59.0], [77.0, 79.0, 81.0]),
                row("holds", [55.0, 57.0, 59.0], [72.5, 74.5, 76.5]),
                row("slightly", [50.0, 52.0, 54.0], [70.4, 72.4, 74.4]),
                row("faster", [60.0, 62.0, 64.0], [70.0, 73.0, 73.0]),
                row("slower", [40.0, 42.0, 44.0], [69.0, 73.0, 74.5]),
                row("nothing", [49.0, 53.0, 54.0], [69.0, 73.0, 74.5]),
                row("harms", [49.0, 53.0, 54.0], [65.0, 67.0, 69.0]),
            )
        ]
    )
    # 70, 72, 74 and 70.5, 72.5, 74.5 from 71: means of 1 and 1.5, standard deviation 2
    assert "- The student alone changes by +1.0 [-4.0, +6.0] AP, given the same time by +1.5 [-3.5, +6.5], and" in page
    assert "and given 1,600 iterations by +0.5." in page
    assert "- Above the student alone: FAR, HOLDS, SLIGHTLY." in page
    assert "- Of these, above the student alone given the same time: FAR, HOLDS." in page
    assert "- Of these, above the student alone given 1,600 iterations (one run): FAR." in page
    assert "after ¼, not shown at the end: FASTER." in page
    assert "- No difference shown at the end, and not above after ¼: SLOWER, NOTHING." in page
    assert "- Below the student alone at the end: HARMS." in page
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    header, teacher, start, doubled, alone, holds = cells[0], *cells[2:6], cells[8]
    assert header[:3] == ["model", "iterations", "AP after ¼"] and len({len(line) for line in cells}) == 1
    assert teacher[:2] == ["teacher", "1,600"] and teacher[6] == "81.2"
    assert start[:2] == ["student before", "1,600"] and start[6] == "71.0" and alone[1] == "+1,600"
    assert doubled[1] == "+1,600" and doubled[6] == "71.5"
    assert alone[6:] == ["72.0 ± 2.0", "", "", "0.25 ± 0.00"]
    assert holds[2:] == ["57.0 ± 2.0", "+5.0 [+5.0, +5.0]"] * 2 + [
        "74.5 ± 2.0", "+2.5 [+2.5, +2.5]", "+2.0 [+2.0, +2.0]", "0.25 ± 0.00",
    ]  # fmt: skip
    assert "1.38 times as many" in page and "80.5 after 1,600" in page and "`A.B 8`" in page and "3 seeds" in page
    assert "The teacher learns 1,500 scenes, the student 300 of them." in page and "`C.D 4`" in page
    assert "Ours: `run it` on a processor" in page


def test_one_seed_shows_nothing():
    content = converged_results(row("dkd", [60.0], [80.0]))
    for each in content["rows"]:
        each.update({key: value[:1] for key, value in each.items() if isinstance(value, list)})
    assert "One seed has no interval" in render([content])


def test_few_labels_are_compared_with_all():
    aps = {"few": [40.0, 42.0], "few_stored": [50.0, 52.0], "unlabeled": [56.0, 58.0], "all": [59.0, 61.0]}
    rows = [{"arm": arm, "title": few_labels.TITLES[arm], "AP": values} for arm, values in aps.items()]
    content = {**RECORD, "kind": "digits_few_labels", "schedule": "demo: 200 iterations", "rows": rows}
    page = render([content | {"labelled_images": 150, "images": 1500, "teacher_labels": "all", "seeds": [1, 2]}])
    (line,) = (line for line in page.splitlines() if "unlabelled |" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["57.0 ± 1.4", "95.0%", "+16.0 [+16.0, +16.0]", "-3.0 [-3.0, -3.0]", "2"]
    assert "150 of 1,500 images" in page and "trained on all labels" in page


def test_a_foreign_teachers_students_are_compared_with_the_one_alone():
    aps = {"student": [40.0, 42.0], "winners_kd": [44.0, 46.0], "vectors_kd": [50.0, 52.0], "vectors_dkd": [48.0, 50.0]}
    rows = [
        {"arm": arm, "title": foreign_teacher.TITLES[arm], "AP": values, "AP50": [70.0, 72.0]}
        for arm, values in aps.items()
    ]
    content = {**RECORD, "kind": "digits_foreign_teacher", "schedule": "demo: 200 iterations", "rows": rows}
    content |= {"teacher_iterations": 1500, "boxes_per_image": {"winners.json": 4.04, "vectors.json": 54.0}}
    page = render([content | {"seeds": [1, 2]}])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    assert cells[2][1:] == ["41.0 ± 1.4", "", "71.0 ± 1.4", "2"]
    assert cells[4][1:3] == ["51.0 ± 1.4", "+10.0 [+10.0, +10.0]"] and "KD, detections and prop" in cells[4][0]
    assert "4.0 in `winners.json` and 54.0 in `vectors.json`" in page and "(AP 81.2, 1,500 iterations)" in page


def test_the_studies_write_what_the_tables_read():
    kinds = study_tables.CONVERGED, study_tables.FEW_LABELS, study_tables.FOREIGN
    assert kinds == (converged.KIND, few_labels.KIND, foreign_teacher.KIND)
    assert (study_tables.ALONE, study_tables.LONGER) == (converged.STUDENT, converged.LONGER)
    assert study_tables.ALONE == foreign_teacher.ALONE
    assert {study_tables.FEW, study_tables.ALL} <= set(few_labels.TITLES)


def test_results_are_found_by_their_kind_and_faults_are_named(tmp_path, monkeypatch):
    assert render([]) == ""
    content = converged_results()
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "b.json").write_text(json.dumps({"kind": "something else"}))
    assert [each["kind"] for each in read_results(tmp_path)] == ["digits_converged"]
    page = tmp_path / "page.md"
    (tmp_path / "b.json").unlink()
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--results", str(tmp_path), "--output", str(page)])
    make_tables.main()
    assert "## Studies on the digits scenes" in page.read_text()
    del content["rows"][0]["AP_half"], content["search"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(SetupError, match=r"a\.json lacks rows AP_half, search"):
        read_results(tmp_path)
