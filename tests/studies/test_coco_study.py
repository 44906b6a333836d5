"""``kd-det study coco``: what it would run, and the results file that it fills. Nothing is trained."""

from __future__ import annotations

import json

import pytest

from kd_det import cli
from kd_det.config import load_config
from kd_det.studies import coco, model_zoo
from tests.conftest import ROOT

SMALL = ["SOLVER.MAX_ITER", "20", "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """``study(*arguments)`` runs the command; returns the command lines and the results file's content."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str):
        lines = []

        def pretend(folder, recipe, output, command, collect, threads=None):
            line = command(False)
            lines.append(line)
            folder.mkdir(parents=True, exist_ok=True)
            ap = 30.0 + int(line[-1]) + (10 if "/dkd_" in str(folder) else 0)
            entry = {"iteration": 19, "bbox/AP": ap, "bbox/AP50": ap + 20, "bbox/AP75": ap + 1, "time": 0.5}
            (folder / "metrics.json").write_text(json.dumps({**entry, "data_time": 0.1, "peak_memory_mib": 900.0}))
            return collect()

        monkeypatch.setattr(coco, "run_step", pretend)
        cli.main(["study", "coco", *arguments])
        return lines, json.loads((tmp_path / "results/coco_ours.json").read_text())

    return run


def test_each_row_and_student_is_trained_with_every_seed(study):
    lines, content = study("--seeds", "2", "--pairs", "r101_r18", "--methods", "kd", "dkd", "--num-gpus", "4", *SMALL)
    assert len(lines) == 6
    for line in lines:
        assert line[1:4] == ["-m", "kd_det", "train"] and line[line.index("--num-gpus") + 1] == "4"
        cfg = load_config(line[5], line[8:])
        assert cfg.SOLVER.MAX_ITER == 20 and f"output/study_coco/{line[5][5:-5]}/seed{cfg.SEED}" == cfg.OUTPUT_DIR
    assert content["schedule"] == "20 iterations of 2 images"
    kd, dkd = content["rows"]
    assert (dkd["teacher"], dkd["student"], dkd["method"], dkd["seeds"]) == ("R101-FPN", "R18-FPN", "DKD", [1, 2])
    assert (dkd["student_AP"], dkd["AP"], dkd["AP50"], dkd["AP75"]) == ([31, 32], [41, 42], [61, 62], [42, 43])
    assert dkd["seconds_per_iteration"] == [0.4, 0.4] and kd["AP"] == [31, 32]
    assert dkd["config"] == "coco/dkd_r101_r18.yaml " + " ".join(SMALL)
    assert content["command"].startswith("kd-det study coco --seeds 2 --pairs r101_r18")


def test_its_rows_are_those_of_the_papers_table_and_stand_beside_them(study):
    published = json.loads((ROOT / "results" / "coco_zhao2022.json").read_text())
    lines, content = study("--seeds", "1")
    assert len(lines) == 3 + 18
    for key in ("teacher", "student", "method", "config"):
        assert {row[key] for row in content["rows"]} == {row[key] for row in published["rows"]}
    assert (content["benchmark"], content["schedule"]) == (published["benchmark"], published["schedule"])
    page = model_zoo.render([published, content])
    assert page.count("`coco/dkd_r101_r18.yaml`") == 1 and "41.0 / 61.0 / 42.0" in page


def test_further_rows_join_the_file_and_other_settings_do_not(study, capsys):
    few = ["--seeds", "1", "--pairs", "r50_mv2", "--methods"]
    study(*few, "kd")
    _, content = study(*few, "dkd")
    assert [row["method"] for row in content["rows"]] == ["KD", "DKD"]
    for more, message in (
        (SMALL, "is of the schedule '180,000 iterations of 8 images', these runs have '20 iterations"),
        (["--start", "coco/mv2_published.yaml"], "has the row 'coco/dkd_r50_mv2.yaml', this would be"),
        (["SEED", "3"], "SEED: --seeds sets it"),
    ):
        with pytest.raises(SystemExit) as end:
            study(*few, "dkd", *more)
        assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "r101_r19"], "--pairs is 'r101_r19'; it must be one of r101_r18"),
        (["--methods", "dkdd"], "--methods is 'dkdd'; it must be one of"),
        (["--seeds", "0"], "--seeds is 0; give 1 or more"),
        (["--num-gpus", "-1"], "--num-gpus is -1; give 0 or more"),
        (["SOLVER.MAX_ITR", "3"], "SOLVER.MAX_ITR"),
    ],
)
def test_mistakes_are_one_line(study, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        study(*arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error
