"""The classification tables: the papers' numbers, ours beside them."""

from __future__ import annotations

import json

import pytest

from classification.benchmark.model_zoo import read_results, render
from classification.config import load_config
from kd_det.common.errors import SetupError
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
    """{title: rows of cells, the header first}; the title is the nearest heading above."""
    found, title = {}, ""
    for line in page.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith("|-"):
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


PUBLISHED = paper(
    {"teacher": "", "student": "big.tag", "method": "alone", "top1": 75.0, "config": "cifar100/vanilla_big"},
    {"teacher": "", "student": "other", "method": "alone", "top1": 60.0, "config": "cifar100/vanilla_other"},
    {"teacher": "", "method": "alone", "top1": 69.0, "config": "cifar100/vanilla_small"},
    {"method": "DKD", "top1": 71.5, "config": "cifar100/dkd_big_small"},
    {"method": "CRD", "top1": None, "config": None},
    {"method": "KD", "top1": 70.0, "config": "cifar100/kd_big_small"},
    {"student": "tiny", "method": "KD", "top1": 50.0, "config": "cifar100/kd_big_tiny"},
)


def test_a_paper_has_a_pair_in_a_row_and_a_method_in_a_column():
    header, *rows = tables(render([PUBLISHED]))["Doe 2030"]
    assert header == ["teacher", "student", "CRD", "KD", "DKD", "in configs/"]
    assert rows == [
        ["big<br>75.00", "small<br>69.00", "", "70.00", "71.50", "`cifar100/*_big_small.yaml`"],
        ["big<br>75.00", "tiny", "", "50.00", "", "`cifar100/kd_big_tiny.yaml`"],
        ["", "other<br>60.00", "", "", "", "`cifar100/vanilla_other.yaml`"],
    ]


def test_ours_stand_below_the_papers_numbers():
    runs = ours(
        run("cifar100/vanilla_small", "", [60.0], [61.0], "none"),
        run("cifar100/dkd_big_small", "big", [72.0, 76.0], [74.0, 78.0]),
    )
    row = tables(render([runs, PUBLISHED]))["Doe 2030"][1]
    assert row[1] == "small<br>69.00<br>**60.00**"
    assert row[2:5] == ["", "70.00", "71.50<br>**74.00 ± 2.83**"]


def test_our_runs_with_gain_and_cost_beside_the_papers():
    alone = run("cifar100/vanilla_small", "", [60.0], [61.0], "none")
    costs = {"seconds_per_epoch": [1.0, 3.0], "peak_memory_mib": [900.0, 1100.0], "extra_parameters": 7}
    dkd = run("cifar100/dkd_big_small", "big", [72.0, 76.0], [74.0, 78.0], **costs)
    unrelated = paper({"method": "KD", "top1": 66.0, "config": "cifar100/kd_x_y"}, source="Roe 2031")
    page = render([ours(dkd, alone), PUBLISHED, unrelated])
    header, first, last = tables(page)["CIFAR-100"]
    assert header[:10] == [
        *("teacher", "student", "method", "Doe 2030", "ours", "Δ", "best", "seeds", "s/epoch", "peak MiB"),
    ]
    cells = ["", "small", "alone", "69.00", "60.00", "", "61.00", "1"]
    assert first == [*cells, "", "", "", "`configs/cifar100/vanilla_small.yaml`"]
    # 74 ± sqrt(8), 14 above the student alone
    assert last[2:8] == ["DKD", "71.50", "74.00 ± 2.83", "+14.00", "76.00 ± 2.83", "2"]
    assert last[8:] == ["2.0 ± 1.4", "1000 ± 141", "7", "`configs/cifar100/dkd_big_small.yaml`"]
    assert "Ours, 2 rows: `tools/run_classification.py` on a processor, 2 cores, threads: 1; torch 9.9." in page


def test_a_run_is_called_as_the_papers_row_of_its_configuration():
    published = paper({"method": "KD, another", "top1": 70.0, "config": "cifar100/kd_big_small"})
    page = render([ours(run("cifar100/kd_big_small", "big", [71.0], [71.0], "kd")), published])
    assert tables(page)["CIFAR-100"][1][2:5] == ["KD, another", "70.00", "71.00"]
    assert tables(page)["Doe 2030"][1][2] == "70.00<br>**71.00**"


def test_without_a_paper_methods_have_their_configurations_names():
    leaves = {"sdd_kd": "sdd", "kd": "kd", "dkd_tckd": "dkd_tckd", "mine": "theirs"}
    runs = [run(f"digits/{leaf}_big_small", "big", [90.0], [91.0], method) for leaf, method in leaves.items()]
    header, *rows = tables(render([ours(*runs)]))["Digits"]
    assert header[3:5] == ["ours", "Δ"]
    assert [row[2] for row in rows] == ["KD", "TCKD alone", "SDD-KD", "theirs"]


def test_top5_and_numbers_that_are_only_remembered():
    row = {"data": "imagenet", "method": "KD", "top1": 70.0, "top5": 90.0, "config": "imagenet/kd_big_small"}
    kd = run("imagenet/kd_big_small", "big", [71.0], [72.0], last_top5=[91.0], best_top5=[92.0])
    page = tables(render([paper(row | {"unchecked": ["top5"]}), ours(kd)]))
    assert page["Doe 2030"][1][2] == "70.00 / 90.00†<br>**71.00 / 91.00**"
    assert page["ImageNet"][1][3:7] == ["70.00 / 90.00†", "71.00 / 91.00", "", "72.00 / 92.00"]


def test_notes_and_sources_of_a_paper():
    page = render([paper(checked_against={"a": "a copy"}, notes=["It says so."])])
    assert "Doe 2030: compared with a copy.\n\n- It says so.\n" in page
    assert "Doe 2030: compared with no copy: its tables were not at hand.\n" in render([paper()])


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


def test_every_published_number_is_on_the_page():
    page = tables(render(PAPERS))
    for published in PAPERS:
        rows = [row for row in published["rows"] if row["top1"] is not None]
        text = [cell for row in page[published["source"]] for cell in row]
        for row in rows:
            assert any(f"{row['top1']:.2f}" in cell for cell in text), row
