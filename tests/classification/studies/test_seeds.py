"""Runs over seeds: results, table, and reuse of what is finished."""

from __future__ import annotations

import json
import statistics
from functools import partial

import pytest

from classification.studies.seeds import TrainingRun, choices, run_seeds, update_results
from kd_det.common.errors import SetupError
from tests.conftest import ROOT
from tests.tools.commands import run_door

SETTINGS = ["SOLVER.EPOCHS", "1", "DATA.BATCH_SIZE", "256", "STUDENT.NAME", "resnet8"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the trainings that it starts
    return partial(run_door, "run_classification")


def test_two_seeds(run, tmp_path):
    config = ["--config-file", ROOT / "configs/digits/base.yaml", "STUDENT.NAME", "resnet8"]
    first = run(*config, "--seeds", 2, "--results", "results.json", "--opts", *SETTINGS)
    assert first.returncode == 0, first.stderr[-3000:]
    content = json.loads((tmp_path / "results.json").read_text())
    (row,) = content["runs"]
    folders = [tmp_path / "output" / "digits" / "vanilla_resnet8" / f"seed{seed}" for seed in (1, 2)]
    single = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert content["kind"] == "classification" and content["data"] == "digits"
    assert row["config"] == "digits/base.yaml STUDENT.NAME resnet8" and row["seeds"] == [1, 2]
    assert (row["data"], row["method"]) == ("digits", "none")
    assert row["last_top1"] == [result["last_top1"] for result in single]
    assert [result["config"]["SEED"] for result in single] == [1, 2]
    mean, deviation = statistics.fmean(row["last_top1"]), statistics.stdev(row["last_top1"])
    assert f"{mean:.2f} ± {deviation:.2f}" in first.stdout

    stamps = [(folder / "model.pth").stat().st_mtime_ns for folder in folders]
    again = run(*config, "--seeds", 2, "--results", "results.json", "--opts", *SETTINGS)
    assert again.returncode == 0 and json.loads((tmp_path / "results.json").read_text()) == content
    assert [(folder / "model.pth").stat().st_mtime_ns for folder in folders] == stamps


def test_other_rows_stay(tmp_path):
    path = tmp_path / "results.json"
    update_results(path, [{"config": "a", "last_top1": [1.0]}, {"config": "b", "last_top1": [2.0]}], "digits")
    update_results(path, [{"config": "a", "last_top1": [3.0]}, {"config": "c", "last_top1": [4.0]}], "digits")
    rows = json.loads(path.read_text())["runs"]
    assert [(row["config"], row["last_top1"]) for row in rows] == [("a", [3.0]), ("b", [2.0]), ("c", [4.0])]


def test_a_file_that_is_not_a_results_file_is_not_overwritten(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(SetupError, match="is not a results file"):
        update_results(tmp_path / "results.json", [{"config": "a"}], "digits")
    assert (tmp_path / "results.json").read_text() == "[]"


def test_every_method_runs_with_every_pair():
    pairs = ["digits/pairs/resnet20_resnet8.yaml", "digits/pairs/vit_resnet8.yaml"]
    methods = [str(ROOT / "configs/cifar100/methods/kd.yaml"), "cifar100/methods/sdd_kd.yaml"]
    chosen = choices([["digits/base.yaml", "STUDENT.NAME", "resnet8"]], methods, pairs)
    assert [str(choice) for choice in chosen] == [
        "cifar100/methods/kd.yaml digits/pairs/resnet20_resnet8.yaml",
        "cifar100/methods/sdd_kd.yaml digits/pairs/resnet20_resnet8.yaml",
        "cifar100/methods/kd.yaml digits/pairs/vit_resnet8.yaml",
        "cifar100/methods/sdd_kd.yaml digits/pairs/vit_resnet8.yaml",
        "digits/base.yaml STUDENT.NAME resnet8",
    ]
    run = TrainingRun(chosen[0].files, (), seed=3)
    assert (run.cfg.DISTILLER, run.cfg.OUTPUT_DIR) == ("kd", "output/digits/kd_resnet20_resnet8/seed3")


@pytest.mark.parametrize(
    ("given", "methods", "pairs", "message"),
    [
        ([], [], [], "there is nothing to run"),
        ([], ["cifar100/methods/kd.yaml"], [], "--methods and --pairs go together"),
        ([["digits/bsae.yaml"]], [], [], "no file 'digits/bsae.yaml'.*digits/base.yaml"),
    ],
)
def test_what_cannot_be_chosen(given, methods, pairs, message):
    with pytest.raises(SetupError, match=message):
        choices(given, methods, pairs)


def test_two_runs_in_one_folder_are_refused():
    chosen = choices([["digits/base.yaml"], ["digits/base.yaml", "SOLVER.LR", "0.1"]], [], [])
    with pytest.raises(SetupError, match=r"SOLVER.LR 0.1' have the same folder, 'output/digits/vanilla_resnet8'"):
        run_seeds(chosen, [1], [], jobs=1, threads=None)


def test_errors_are_one_line(run):
    wrong = run("--config-file", "digits/base.yaml", "--opts", "SOLVER.EPOCH", "1")
    assert wrong.returncode == 2 and wrong.stderr.strip().startswith("error: ") and "SOLVER.EPOCHS" in wrong.stderr
    settings = ["--config-file", "digits/base.yaml", "--seeds", 0]
    assert "--seeds 0" in run(*settings).stderr
