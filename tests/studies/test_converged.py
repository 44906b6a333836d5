"""``kd-det study converged``: the search for schedules, what it would run, and what it writes. Nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks
from detectron2.modeling import build_backbone

from kd_det import cli
from kd_det.config import load_config
from kd_det.studies import converged, digits_runs, scenes
from kd_det.studies.digits_runs import Runs, config_of
from kd_det.studies.rounds import narrow_resnet, until_settled
from kd_det.studies.scenes import Part
from kd_det.studies.study_tables import read_results, render
from tests.tools.commands import run_here

SCENES = [Part(name, Path(f"{name}.json"), Path("images")) for name in ("scenes_train", "scenes_val", "scenes_tune")]
SHARES = [Part(name, Path(f"{name}.json"), Path("images")) for name in ("scenes_few", "scenes_rest")]
# AP on the tuning scenes, by iterations in all.
TEACHER = {80: 60.0, 160: 70.0, 320: 70.5}
STUDENT = {80: 55.0, 160: 62.0, 320: 62.4}
METHODS = ("kd", "dkd", "reviewkd", "dkd_reviewkd", "stored_dkd", "live_dkd_teacher_boxes")


def test_training_is_doubled_until_that_gains_little():
    asked = []

    def ap_of(iterations):
        asked.append(iterations)
        return {100: 50.0, 200: 60.0, 400: 61.0, 800: 61.5, 1600: 90.0}[iterations]

    found = until_settled(ap_of, 100, gain=1.0, most=1600)
    assert asked == [100, 200, 400, 800] and found.best == (800, 61.5) and found.last_gain == 0.5
    assert until_settled({1: 50.0, 2: 49.0}.get, 1, gain=1.0, most=2).best == (1, 50.0)
    found = until_settled(ap_of, 100, gain=1.0, most=799)
    assert found.best == (400, 61.0) and found.last_gain == 1.0


def one_by_one(runs, run, jobs):
    return [run(each) for each in runs]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """``study(*arguments)`` runs the command; returns the configurations trained, by folder, and all verbs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "make_study_scenes", lambda folder, settings: SCENES)
    monkeypatch.setattr(scenes, "label_few", lambda folder, json_file, images, share: SHARES)
    monkeypatch.setattr(converged, "scenes_recipe", lambda folder: "scenes")
    monkeypatch.setattr(converged, "run_side_by_side", one_by_one)

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
        arguments = ("--iterations", "160", *arguments)
        cli.main(["study", "converged", "--first", "80", "--most", "320", "--teacher-most", "320", *arguments])
        return trained, verbs

    return run


def entries(folder, cfg):
    """What a run of these settings would log: its evaluations, the last one at the number of iterations."""
    length, period = cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD
    step = 0.5 if cfg.KD.TERMS else 0.4
    yield {"iteration": 19, "time": step + 0.1, "data_time": 0.1, "peak_memory_mib": 900.0}
    if folder.parent.name == "alone":
        network, _, iterations = folder.name.partition("_")
        tuning = (TEACHER if network == "teacher" else STUDENT)[int(iterations)]
        yield {"iteration": length, "scenes_val/bbox/AP": tuning + 1, "scenes_tune/bbox/AP": tuning}
        return
    for part in range(1, length // period + 1):
        iteration = part * period - (part * period < length)
        yield {"iteration": iteration, "bbox/AP": 10.0 * part + cfg.SEED + (5 if cfg.KD.TERMS else 0)}


def start_of(cfg):
    return "/".join(Path(cfg.MODEL.WEIGHTS).parts[-3:-1])


def test_rounds_alone_start_from_each_other_and_double_the_training(study):
    trained, verbs = study("--search-only")
    rounds = [f"alone/{network}_{total}" for network in ("teacher", "student") for total in (80, 160, 320)]
    assert list(trained) == rounds and verbs.count("kd_det.studies.warm_up") == 2 and not Path("results").exists()
    assert [cfg.SOLVER.MAX_ITER for cfg in trained.values()] == 2 * [80, 80, 160]
    assert [start_of(cfg) for cfg in trained.values()] == [
        "study_converged/teacher_warm_up", "alone/teacher_80", "alone/teacher_160",
        "study_converged/student_warm_up", "alone/student_80", "alone/student_160",
    ]  # fmt: skip
    assert [cfg.SEED for cfg in trained.values()] == [1, 2, 3, 1, 2, 3]
    for name, cfg in trained.items():
        is_teacher = name.startswith("alone/teacher")
        expected = ("scenes_train", 16) if is_teacher else ("scenes_few", 8)
        assert (*cfg.DATASETS.TRAIN, cfg.MODEL.RESNETS.WIDTH_PER_GROUP) == expected and not cfg.KD.TERMS
        assert cfg.DATASETS.TEST == ("scenes_val", "scenes_tune") and cfg.TEST.EVAL_PERIOD == cfg.SOLVER.MAX_ITER


def test_every_arm_starts_from_the_student_before_its_last_round(study):
    trained, verbs = study("--seeds", "3")
    arms = ("student", *METHODS, "unlabeled", "student_longer")
    last = {name: cfg for name, cfg in trained.items() if not name.startswith("alone")}
    assert set(last) == {f"{arm}/seed{seed}" for arm in arms for seed in (1, 2, 3)}
    assert verbs.count("store-teacher") == 1
    for name, cfg in last.items():
        assert start_of(cfg) == "alone/student_160" and name.endswith(f"seed{cfg.SEED}")
        assert cfg.DATASETS.TRAIN == ("scenes_few",) and cfg.DATASETS.TEST == ("scenes_val",)
        assert list(cfg.DATASETS.UNLABELED) == ["scenes_rest"] * name.startswith("unlabeled")
        # 0.5 s a step for 0.4 s of the student alone: 200 iterations in the time of 160
        assert cfg.SOLVER.MAX_ITER == (200 if "longer" in name else 160) == 4 * cfg.TEST.EVAL_PERIOD
        if cfg.KD.TERMS:
            assert Path(cfg.KD.TEACHER.WEIGHTS).parts[-2:] == ("teacher_320", "model_final.pth")
            assert cfg.KD.TEACHER.OPTS[3] == "16" and cfg.MODEL.RESNETS.WIDTH_PER_GROUP == 8
    assert [arm for arm in arms if last[f"{arm}/seed1"].KD.TEACHER.STORED] == ["stored_dkd", "unlabeled"]

    content = json.loads(Path("results/digits_det_converged.json").read_text())
    search = content["search"]
    assert search["student"] == [[80, 55.0], [160, 62.0], [320, 62.4]] and content["time_ratio"] == 1.25
    assert (content["teacher_AP"], content["start_AP"], content["doubled_AP"]) == (71.5, 63.0, 63.4)
    assert [round(search[name], 1) for name in ("student_gain", "teacher_gain", "gap")] == [0.4, 0.5, 8.1]
    assert [row["arm"] for row in content["rows"]] == ["student", "student_longer", *METHODS, "unlabeled"]
    assert content["rows"][0]["AP_quarter"] == [11, 12, 13] and content["rows"][0]["AP"] == [41, 42, 43]
    assert content["rows"][3]["AP_half"] == [26, 27, 28] and content["rows"][1]["iterations"] == 200
    assert content["seeds"] == [1, 2, 3] and content["command"].startswith("kd-det study converged --first 80")


def test_networks_that_still_gain_are_taken_as_they_are(study):
    trained, _ = study("--seeds", "1", "--methods", "dkd", "--teacher-most", "160", "--most", "160")
    assert Path(trained["dkd/seed1"].KD.TEACHER.WEIGHTS).parent.name == "teacher_160"
    assert start_of(trained["dkd/seed1"]) == "alone/student_80"
    content = json.loads(Path("results/digits_det_converged.json").read_text())
    assert (content["search"]["teacher_gain"], content["search"]["student_gain"]) == (10.0, 7.0)
    assert "their last rounds gain 10.0 and 7.0 AP" in render([content])


def test_a_student_with_all_scenes_has_no_unlabelled_ones(study):
    trained, verbs = study("--seeds", "1", "--methods", "dkd", "--share", "1", "--iterations", "161")
    assert trained["dkd/seed1"].DATASETS.TRAIN == ("scenes_train",) and trained["dkd/seed1"].SOLVER.MAX_ITER == 164
    assert "unlabeled/seed1" not in trained and "store-teacher" not in verbs


def test_overrides_reach_the_network_that_they_are_for(study):
    opts = ["--student-opts", "MODEL.FPN.OUT_CHANNELS", "8", "--teacher-opts", "MODEL.FPN.OUT_CHANNELS", "24"]
    opts += ["--method-opts", "KD.DKD.BETA", "0.5"]
    trained, _ = study("--seeds", "1", "--methods", "dkd", "--also", "nkd+pkd", *opts)
    assert trained["alone/teacher_160"].MODEL.FPN.OUT_CHANNELS == 24
    for name in ("student/seed1", "dkd/seed1", "nkd+pkd/seed1"):
        cfg = trained[name]
        of_teacher, beta = ([], 0.25) if name.startswith("student") else (opts[4:6], 0.5)
        found = cfg.MODEL.FPN.OUT_CHANNELS, cfg.KD.DKD.BETA
        assert found == (8, beta)
        assert list(cfg.KD.TEACHER.OPTS)[-2:] == of_teacher
    assert trained["nkd+pkd/seed1"].KD.TERMS == ("nkd", "pkd")


def test_the_measured_ratio_is_kept_when_seeds_are_added(study):
    study("--seeds", "1", "--methods", "dkd")
    path = Path("output/study_converged/time_ratio.json")
    path.write_text(path.read_text().replace("1.25", "1.5"))
    trained, _ = study("--seeds", "2", "--methods", "dkd")
    assert trained["student_longer/seed2"].SOLVER.MAX_ITER == 240
    trained, _ = study("--seeds", "2", "--methods", "dkd", "kd")  # a method may be slower
    assert trained["student_longer/seed2"].SOLVER.MAX_ITER == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gap", "9"], "--gap 9: on the tuning scenes the teacher is 8.1 AP above the student alone. Make"),
        (["--share", "1.5"], "--share is 1.5; it must be above 0, up to 1"),
        (["--iterations", "40"], "--iterations is 40; it must be a whole number, 80 or more"),
        (["--methods", "dkdd"], "--methods: there is no 'dkdd'. Did you mean 'dkd'?"),
        (["--scenes", "hardest"], "--scenes is 'hardest'; it must be one of usual, hard. Did you mean 'hard'?"),
        (["--seeds", "0"], "--seeds is 0; it must be a whole number, 1 or more"),
        (["--first", "40"], "--first is 40; it must be a whole number, 80 or more"),
        (["--most", "50"], "--most is 50; it must be a whole number, 160 or more"),
        (["--teacher-most", "50"], "--teacher-most is 50; it must be a whole number, 160 or more"),
        (["--student-opts", "MODEL.RESNETS.DEPHT", "18"], "MODEL.RESNETS.DEPTH"),
        (["--method-opts", "KD.DKD.BTEA", "1"], "KD.DKD.BETA"),
    ],
)
def test_mistakes_are_one_line(study, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        study(*arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error


def test_the_narrow_networks_can_be_built():
    for part, channels in ((4, 32), (8, 16)):
        cfg = load_config("digits_det/student.yaml", narrow_resnet(part), device="cpu")
        assert {shape.channels for shape in build_backbone(cfg).output_shape().values()} == {channels}
        assert part != 4 or cfg.MODEL == load_config("digits_det/student.yaml", device="cpu").MODEL


def test_real_runs_end_in_the_model_zoo(tmp_path, monkeypatch):
    """The study's own commands, in this process: few scenes, rounds of 4 iterations, no warm-up."""

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
    for module in (converged, digits_runs):
        monkeypatch.setattr(module, "run_side_by_side", one_by_one)
    monkeypatch.setattr(Runs, "warm_up", random_backbone)
    small = ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    arguments = ["--seeds", "1", "--first", "4", "--most", "8", "--teacher-most", "8", "--iterations", "4"]
    arguments += ["--gain", "100", "--gap", "-100", "--train-images", "16", "--share", "0.5", "--device", "cpu"]
    arguments += ["--methods", "stored_dkd"]
    cli.main(["study", "converged", *arguments, "--student-opts", *small, "--teacher-opts", *small])
    (content,) = read_results(tmp_path / "results")
    assert [row["arm"] for row in content["rows"]] == ["student", "student_longer", "stored_dkd", "unlabeled"]
    assert all(0 <= row[mark][0] <= 100 for row in content["rows"] for mark in converged.MARKS)
    assert "student + stored DKD" in render([content])
