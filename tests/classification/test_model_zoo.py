"""The classification tables: the papers' numbers, ours beside them."""

from __future__ import annotations

import json

import pytest

from classification.benchmark.model_zoo import read_results, render
from classification.config import load_config
from kd_det.errors import SetupError
from tests.conftest import ROOT

HARDWARE = {"name": "a processor", "cpu_cores": 2, "torch_threads": 1}


def paper(*rows, source="Doe 2030", **more):
    rows = [{"data": "cifar100", "teacher": "big", "student": "small", **row} for row in rows]
    return {"kind": "classification", "source": source, "checked_against": {}, "notes": [], "rows": rows, **more}


def ours(*runs):
    both = {"versions": {"torch": "9.9"}, "hardware": HARDWARE}
    return {"kind": "classification", "runs": [{**both, **run} for run in runs]}


def run(config, teacher, last, best, distiller="dkd", **more):
    figures = {"last_top1": last, "best_top1": best, "seeds": list(range(len(last)))}
    return {"config": config, "distiller": distiller, "teacher": teacher, "student": "small", **figures, **more}


def tables(page):
    """{title: rows of cells, the header first}"""
    found, title = {}, ""
    for line in page.splitlines():
        if line.startswith("### "):
            title = line[4:]
        elif line.startswith("|") and not line.startswith("|-"):
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_ours_stand_beside_the_papers_and_are_blank_where_not_run():
    published = paper(
        {"method": "KD", "top1": 70.0, "config": "cifar100/kd_big_small"},
        {"method": "DKD", "top1": 71.5, "config": "cifar100/dkd_big_small"},
        {"teacher": "", "method": "alone", "top1": 69.0, "config": "cifar100/vanilla_small"},
        {"method": "CRD", "top1": None, "config": None},
    )
    alone = run("cifar100/vanilla_small", "", [60.0], [61.0], "none")
    costs = {"seconds_per_epoch": [1.0, 3.0], "peak_memory_mib": [900.0, 1100.0], "extra_parameters": 7}
    dkd = run("cifar100/dkd_big_small", "big", [72.0, 76.0], [74.0, 78.0], **costs)
    page = render([ours(dkd, alone), published])
    header, first, crd, kd, last = tables(page)["CIFAR-100"]
    assert header[3:10] == ["Doe 2030", "ours", "Δ", "best", "seeds", "s/epoch", "peak MiB"]
    assert first == [
        "",
        "small",
        "alone",
        "69.00",
        "60.00",
        "",
        "61.00",
        "1",
        *[""] * 3,
        "`configs/cifar100/vanilla_small.yaml`",
    ]
    assert crd == ["big", "small", "CRD", *[""] * 9]
    assert kd == ["big", "small", "KD", "70.00", *[""] * 7, "`configs/cifar100/kd_big_small.yaml`"]
    # 74 ± sqrt(8), 14 above the student alone
    assert last[2:8] == ["DKD", "71.50", "74.00 ± 2.83", "+14.00", "76.00 ± 2.83", "2"]
    assert last[8:11] == ["2.0 ± 1.4", "1000 ± 141", "7"]
    assert "Ours, 2 rows: `tools/run_classification.py` on a processor, 2 cores, threads: 1; torch 9.9." in page


def test_a_run_has_the_row_of_its_configuration():
    published = paper({"method": "KD, another", "top1": 70.0, "config": "cifar100/kd_big_small"})
    rows = tables(render([ours(run("cifar100/kd_big_small", "big", [71.0], [71.0], "kd")), published]))["CIFAR-100"]
    assert rows[1][2:5] == ["KD, another", "70.00", "71.00"] and len(rows) == 2


def test_without_a_paper_methods_have_their_configurations_names():
    leaves = {"sdd_kd": "sdd", "kd": "kd", "dkd_tckd": "dkd_tckd", "mine": "theirs"}
    runs = [run(f"digits/{leaf}_big_small", "big", [90.0], [91.0], method) for leaf, method in leaves.items()]
    header, *rows = tables(render([ours(*runs)]))["Digits"]
    assert header[3:5] == ["ours", "Δ"]
    assert [row[2] for row in rows] == ["KD", "TCKD alone", "SDD-KD", "theirs"]


def test_top5_and_numbers_that_are_only_remembered():
    published = paper(
        {"data": "imagenet", "method": "KD", "top1": 70.0, "top5": 90.0, "config": None, "unchecked": ["top5"]}
    )
    dkd = run("imagenet/dkd_big_small", "big", [71.0], [72.0], last_top5=[91.0], best_top5=[92.0])
    _, kd, own = tables(render([published, ours(dkd)]))["ImageNet"]
    assert kd[3] == "70.00 / 90.00†"
    assert (own[4], own[6]) == ("71.00 / 91.00", "72.00 / 92.00")


def test_notes_and_sources_of_a_paper():
    page = render([paper(checked_against={"a": "a copy"}, notes=["It says so."])])
    assert "Doe 2030: compared with a copy.\n\n- It says so.\n" in page


def test_faults_are_named_and_other_benchmarks_left_alone(tmp_path):
    (tmp_path / "detection.json").write_text(json.dumps({"benchmark": "COCO"}))
    assert read_results(tmp_path) == [] and render([]) == ""
    content = paper({"method": "KD", "top1": 1.0})
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(SetupError, match=r"x\.json lacks rows config"):
        read_results(tmp_path)


PAPERS = [content for content in read_results(ROOT / "results") if "source" in content]


@pytest.mark.parametrize("published", PAPERS, ids=lambda content: content["source"])
def test_published_rows_agree_with_their_configurations(published):
    places = [(row["data"], row["teacher"], row["student"], row["method"]) for row in published["rows"]]
    assert len(set(places)) == len(places)
    for row in published["rows"]:
        if row["config"]:
            cfg = load_config(str(ROOT / "configs" / f"{row['config']}.yaml"))
            assert (row["data"], row["teacher"], row["student"]) == (cfg.DATA.NAME, cfg.TEACHER.NAME, cfg.STUDENT.NAME)


@pytest.mark.parametrize("published", PAPERS, ids=lambda content: content["source"])
def test_every_published_number_says_what_it_was_compared_with(published):
    for row in published["rows"]:
        known = [name for name in ("top1", "top5") if row.get(name) is not None]
        assert all(30 < row[name] < 100 for name in known), row
        remembered = row.get("unchecked", [])
        assert set(remembered) <= set(known), row
        assert (row.get("checked") in published["checked_against"]) == (set(remembered) != set(known)), row
