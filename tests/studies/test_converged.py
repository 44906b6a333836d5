"""``kd-det study converged``: the search for schedules, what it would run, and what it writes. Nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks
from detectron2.modeling import build_backbone

from kd_det import cli
from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.studies import converged, digits_runs
from kd_det.studies.converged import until_settled
from kd_det.studies.digits_runs import Runs, config_of
from kd_det.studies.scenes import Part
from kd_det.studies.study_tables import read_results, render
from tests.tools.commands import run_here

PARTS = [Part(name, Path(f"{name}.json"), Path("images")) for name in ("scenes_train", "scenes_val", "scenes_tune")]
# AP on the tuning scenes, by iterations.
TEACHER = {80: 60.0, 160: 70.0, 320: 70.5}
STUDENT = {80: 55.0, 160: 62.0, 320: 62.4}


def test_a_schedule_is_doubled_until_that_gains_little():
    asked = []

    def ap_of(iterations):
        asked.append(iterations)
        return {100: 50.0, 200: 60.0, 400: 61.0, 800: 61.5, 1600: 90.0}[iterations]

    found = until_settled(ap_of, 100, gain=1.0, most=1600, who="it")
    assert asked == [100, 200, 400, 800] and found.iterations == 400 and found.best == (800, 61.5)
    assert until_settled({1: 50.0, 2: 49.0}.get, 1, 1.0, 2, "it").best == (1, 50.0)
    with pytest.raises(SetupError, match=r"--most 400: it still gains 1 AP or more \(50.0 after 100, 60.0 after 200, "):
        until_settled(ap_of, 100, gain=1.0, most=400, who="it")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """``study(*arguments)`` runs the command; returns the configurations trained, by folder, and all verbs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(converged, "make_study_scenes", lambda folder, settings: PARTS)
    monkeypatch.setattr(converged, "scenes_recipe", lambda folder: "scenes")

    def run(*arguments: str):
        trained, verbs = {}, []

        def pretend(folder, recipe, output, command, collect, threads=None):
            line = command(False)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / output).write_bytes(b"written")
            verbs.append(line[3] if line[2] == "kd_det" else line[2])
            if verbs[-1] == "train":
                cfg = load_config(line[5], line[6:])
                trained[folder.relative_to("output/study_converged").as_posix()] = cfg
                (folder / "metrics.json").write_text("\n".join(map(json.dumps, entries(folder, cfg))))
            return collect()

        monkeypatch.setattr(digits_runs, "run_step", pretend)
        cli.main(["study", "converged", "--first", "80", "--most", "320", *arguments])
        return trained, verbs

    return run


def entries(folder, cfg):
    """What a run of these settings would log: four evaluations, the last one at the number of iterations."""
    length = cfg.SOLVER.MAX_ITER
    tuning = (TEACHER if folder.parent.name.startswith("teacher") else STUDENT).get(length, 62.0)
    step = 0.5 if cfg.KD.TERMS else 0.4
    yield {"iteration": 19, "time": step + 0.1, "data_time": 0.1, "peak_memory_mib": 900.0}
    for part in (1, 2, 3, 4):
        iteration = part * length // 4 - (part < 4)
        ap = 10.0 * part + cfg.SEED + (5 if cfg.KD.TERMS else 0)
        yield {"iteration": iteration, "scenes_val/bbox/AP": ap, "scenes_tune/bbox/AP": tuning}


def test_the_search_is_followed_by_all_arms_on_the_schedule_that_it_found(study):
    trained, verbs = study("--seeds", "3", "--search-seeds", "2")
    methods = ("kd", "dkd", "reviewkd", "dkd_reviewkd", "stored_dkd")
    arms = {f"{arm}_160/seed{seed}" for arm in ("student", *methods) for seed in (1, 2, 3)}
    searched = {f"teacher_{length}/seed1" for length in TEACHER}
    searched |= {f"student_{length}/seed{seed}" for length in STUDENT for seed in (1, 2)}
    # 0.5 s a step for 0.4 s of the student alone: 200 iterations in the time of 160
    assert set(trained) == arms | searched | {f"student_200/seed{seed}" for seed in (1, 2, 3)}
    assert verbs.count("store-teacher") == 1
    for name, cfg in trained.items():
        assert cfg.DATASETS.TRAIN == ("scenes_train",) and cfg.DATASETS.TEST == ("scenes_val", "scenes_tune")
        assert f"_{cfg.SOLVER.MAX_ITER}/seed{cfg.SEED}" in name and 4 * cfg.TEST.EVAL_PERIOD == cfg.SOLVER.MAX_ITER
        assert (cfg.MODEL.FPN.OUT_CHANNELS == 16) == (not name.startswith("teacher"))
    for method in methods:
        teacher = Path(trained[f"{method}_160/seed2"].KD.TEACHER.WEIGHTS)
        assert teacher.parts[-3:] == ("teacher_320", "seed1", "model_final.pth")  # the better of the last two

    content = json.loads(Path("results/digits_det_converged.json").read_text())
    assert content["search"]["student"] == [[80, 55.0], [160, 62.0], [320, 62.4]] and content["time_ratio"] == 1.25
    assert [row["arm"] for row in content["rows"]] == ["student", "student_longer", *methods]
    assert content["rows"][0]["AP_quarter"] == [11, 12, 13] and content["rows"][0]["AP"] == [41, 42, 43]
    assert content["rows"][3]["AP_half"] == [26, 27, 28] and content["rows"][1]["iterations"] == 200
    assert content["seeds"] == [1, 2, 3] and content["command"].startswith("kd-det study converged --first 80")


def test_overrides_reach_the_network_that_they_are_for(study):
    opts = ["--student-opts", "MODEL.FPN.OUT_CHANNELS", "8", "--teacher-opts", "MODEL.RESNETS.DEPTH", "34"]
    trained, _ = study("--seeds", "1", "--search-seeds", "1", "--methods", "dkd", "--also", "nkd+pkd", *opts)
    assert trained["teacher_160/seed1"].MODEL.RESNETS.DEPTH == 34
    for name in ("student_160/seed1", "dkd_160/seed1", "nkd+pkd_160/seed1"):
        cfg = trained[name]
        assert cfg.MODEL.FPN.OUT_CHANNELS == 8 and cfg.MODEL.RESNETS.DEPTH == 50
        assert list(cfg.KD.TEACHER.OPTS) == ([] if name.startswith("student") else opts[4:])
    assert trained["nkd+pkd_160/seed1"].KD.TERMS == ("nkd", "pkd")


def test_the_measured_ratio_is_kept_when_seeds_are_added(study):
    study("--seeds", "1", "--search-seeds", "1", "--methods", "dkd")
    path = Path("output/study_converged/time_ratio.json")
    path.write_text(path.read_text().replace("1.25", "1.5"))
    trained, _ = study("--seeds", "2", "--search-seeds", "1", "--methods", "dkd")
    assert "student_240/seed2" in trained
    trained, _ = study("--seeds", "2", "--search-seeds", "1", "--methods", "dkd", "kd")  # a method may be slower
    assert "student_200/seed2" in trained


def test_search_only_compares_nothing(study, capsys):
    trained, _ = study("--search-only", "--search-seeds", "1")
    assert not any(cfg.KD.TERMS for cfg in trained.values()) and not Path("results").exists()
    assert "'gap': 8.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gap", "9"], "--gap 9: on the tuning scenes the teacher is 8.1 AP above the student alone. Make"),
        (["--gain", "0.1"], "--most 320: the teacher still gains 0.1 AP or more (60.0 after 80, 70.0 after 160, 70.5"),
        (["--methods", "dkdd"], "--methods: there is no 'dkdd'. Did you mean 'dkd'?"),
        (["--scenes", "hardest"], "--scenes is 'hardest'; it must be one of usual, hard. Did you mean 'hard'?"),
        (["--seeds", "0"], "--seeds is 0; it must be a whole number, 1 or more"),
        (["--first", "40"], "--first is 40; it must be a whole number, 80 or more"),
        (["--most", "50"], "--most is 50; it must be a whole number, 160 or more"),
        (["--student-opts", "MODEL.RESNETS.DEPHT", "18"], "MODEL.RESNETS.DEPTH"),
    ],
)
def test_mistakes_are_one_line(study, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        study(*arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error


def test_the_small_student_can_be_built():
    cfg = load_config("digits_det/student.yaml", converged.SMALL_STUDENT, device="cpu")
    shapes = build_backbone(cfg).output_shape()
    assert {shape.channels for shape in shapes.values()} == {16}


def test_real_runs_end_in_the_model_zoo(tmp_path, monkeypatch):
    """The study's own commands, in this process: few scenes, schedules of 4 and 8 iterations, no warm-up."""

    def here(line, threads, progress):
        ended = run_here(*line[3:])
        assert ended.returncode == 0, ended.stderr[-2000:]

    def random_backbone(self, network, iterations, overrides=()):
        path = self.output_dir / f"{network}.pth"
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        backbone = build_backbone(load_config(config_of(network), overrides, device="cpu"))
        torch.save({"model": {f"backbone.{name}": value for name, value in backbone.state_dict().items()}}, path)
        return path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("kd_det.studies.scenes.VAL_IMAGES", 3)
    monkeypatch.setattr(converged, "LEAST", 4)
    monkeypatch.setattr(converged, "non_negative", lambda option, value: value)  # nothing is learnt in 8 iterations
    writer = hooks.PeriodicWriter
    monkeypatch.setattr(hooks, "PeriodicWriter", lambda writers, period: writer(writers, 1))
    monkeypatch.setattr("kd_det.common.run_steps.stream", here)
    monkeypatch.setattr(digits_runs, "run_side_by_side", lambda runs, run, jobs: [run(each) for each in runs])
    monkeypatch.setattr(Runs, "warm_up", random_backbone)
    small = ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    arguments = ["--seeds", "1", "--search-seeds", "1", "--first", "4", "--most", "8", "--gain", "100", "--gap", "-100"]
    arguments += ["--train-images", "16", "--methods", "stored_dkd", "--device", "cpu"]
    cli.main(["study", "converged", *arguments, "--student-opts", *small, "--teacher-opts", *small])
    (content,) = read_results(tmp_path / "results")
    assert [row["arm"] for row in content["rows"]] == ["student", "student_longer", "stored_dkd"]
    assert all(0 <= row[mark][0] <= 100 for row in content["rows"] for mark in converged.MARKS)
    assert "student + stored DKD" in render([content])
