import json
import re
import shlex
import sys

import make_tables
import pytest
from detectron2.engine import default_argument_parser

from kd_det.common.command_line import parse_arguments
from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.engine.setup import dry_build
from kd_det.studies.methods import all_methods, recipe_of, title
from kd_det.studies.model_zoo import read_results, render
from kd_det.teacher.config import teacher_config
from tests.conftest import ROOT

PAIR = {"teacher": "big", "student": "small", "config": "coco/x.yaml"}


def paper(*rows):
    return {"benchmark": "COCO", "source": "Doe 2030", "schedule": "1x", "rows": [{**PAIR, **row} for row in rows]}


def ours(*rows):
    hardware = {"name": "a processor", "cpu_cores": 2, "torch_threads": 1, "runs_at_a_time": 2}
    return {**paper(*rows), "source": "ours", "hardware": hardware, "versions": {"torch": "9.9"}, "command": "run it"}


def test_files_that_are_not_json_objects_are_named(tmp_path):
    for text, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(SetupError, match=rf"x\.json {message}"):
            read_results(tmp_path)


def cells(page):
    """The rows of the only table as lists of cells, the header first."""
    lines = [line for line in page.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_our_numbers_are_next_to_the_papers_and_blank_if_not_run():
    published = paper(
        {"method": "KD", "teacher_AP": [42.0], "student_AP": [33.26], "AP": [33.97]},
        {"method": "DKD", "teacher_AP": [42.0], "student_AP": [33.26], "AP": [35.05]},
    )
    run = {"method": "DKD", "teacher_AP": [41.0], "student_AP": [30.0, 34.0], "AP": [35.0, 37.0]}
    run |= {"best_AP": [36.0, 38.0], "seconds_per_iteration": [0.5, 0.5], "memory_mib": [900.0, 1100.0]}
    page = render([published, ours(run)])
    header, kd, dkd = cells(page)
    assert header[5:8] == ["student alone (Doe 2030)", "Doe 2030", "Δ"]
    assert kd == ["big", "small", "KD", "1x", "42.00", "33.26", "33.97", "+0.71", *[""] * 7, "`coco/x.yaml`"]
    # ours: 32 ± sqrt(8) and 36 ± sqrt(2)
    assert dkd[4:11] == ["41.0", "33.26", "35.05", "+1.79", "32.0 ± 2.8", "36.0 ± 1.4", "+4.0"]
    assert dkd[11:15] == ["37.0 ± 1.4", "2", "0.50 ± 0.00", "1000 ± 141"]
    assert "Ours: `run it` on a processor, 2 cores, threads: 1 a run, 2 runs at a time; torch 9.9." in page


def test_ap50_and_ap75_stand_behind_ap_and_notes_below_the_table():
    row = {"method": "KD", "teacher_AP": [42.0], "student_AP": [33.0], "student_AP50": [53.0], "AP": [34.0]}
    published = paper(row | {"AP50": [54.66], "AP75": [36.62]})
    page = render([{**published, "notes": ["It says so."]}])
    assert cells(page)[1][4:8] == ["42.00", "33.00 / 53.00", "34.00 / 54.66 / 36.62", "+1.00"]
    assert "\n\n- It says so.\n" in page


def test_without_a_paper_there_are_no_columns_for_one():
    (header, row) = cells(render([ours({"method": "DKD", "student_AP": [30.0], "AP": [31.0]})]))
    assert header[4:8] == ["teacher AP", "student alone (ours)", "ours", "Δ"]
    assert row[4:8] == ["", "30.0", "31.0", "+1.0"]


def test_faults_are_named(tmp_path):
    with pytest.raises(SetupError, match="no results in"):
        read_results(tmp_path)
    content = paper({"method": "KD", "AP": [1.0]})
    del content["rows"][0]["config"], content["schedule"]
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(SetupError, match=r"x\.json lacks rows config, schedule"):
        read_results(tmp_path)


def test_the_committed_page_is_what_the_results_give(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check"])
    with pytest.raises(SystemExit) as current:
        make_tables.main()
    assert current.value.code is None, "python tools/make_tables.py writes MODEL_ZOO.md again"
    (tmp_path / "page.md").write_text("old")
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check", "--output", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit, match=r"page\.md is out of date"):
        make_tables.main()


def rows_of_the_page():
    """(method, arguments) of every detector's row of MODEL_ZOO.md, by its own text."""
    rows = cells(re.split("^## (?!Detection)", (ROOT / "MODEL_ZOO.md").read_text(), flags=re.MULTILINE)[0])
    header: list[str] = []
    for row in rows:
        if row[-1] == "arguments":
            header = row
        else:
            yield row[header.index("method")], row[-1].strip("`")


def test_every_row_of_the_page_is_built_by_its_command():
    """Its student, and the terms of its method, without memory for their weights; its teacher's configuration."""
    rows = list(rows_of_the_page())
    assert len(rows) == 33
    parser = default_argument_parser()
    for method, given in rows:
        args = parse_arguments(parser, ["--config-file", *shlex.split(given)])
        cfg = load_config(args.config_file, args.opts)
        model = dry_build(cfg)
        (name,) = (name for name in all_methods() if title(name) == method)
        assert tuple(model.terms) == recipe_of(name).terms, given
        assert teacher_config(cfg).MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.ROI_HEADS.NUM_CLASSES, given
