"""What --resume restores and what it refuses, and what a new run does with the folder of an old one."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import signal

import pytest
import torch

from kd_det.common import files
from kd_det.common.files import run_lock
from kd_det.config import load_config
from kd_det.engine.resuming import compare_settings, config_leaves
from tests.engine.command import run_here


@pytest.fixture(scope="module")
def trained(stage, tmp_path_factory):
    """The folder of a run of three steps."""
    folder = tmp_path_factory.mktemp("trained") / "output"
    assert run_here(stage, folder, "SOLVER.MAX_ITER", 3).code == 0
    return folder


@pytest.fixture
def output(trained, tmp_path):
    """A copy of it, in which the last checkpoint can be damaged."""
    shutil.copytree(trained, tmp_path / "output")
    return tmp_path / "output"


def edit(output, change):
    """Applies ``change`` to the content of the last checkpoint."""
    path = output / "model_final.pth"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def learning_rates(output):
    return [json.loads(line)["lr"] for line in (output / "metrics.json").read_text().splitlines()]


def test_a_new_learning_rate_and_weight_are_applied_and_logged(train, output):
    ended = train(
        "--resume", "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 2e-5, "KD.DKD.WEIGHT", 0.5, "SOLVER.WARMUP_ITERS", 0
    )
    assert ended.code == 0, ended.error
    assert "Starting training from iteration 3" in ended.log
    assert "--resume: SOLVER.BASE_LR was 1e-05 and is 2e-05, from here on" in ended.log
    assert "--resume: KD.DKD.WEIGHT was 1.0 and is 0.5, from here on" in ended.log
    assert learning_rates(output)[-1] == pytest.approx(2e-5)  # the very first step of the resumed run has it
    saved = torch.load(output / "model_final.pth", weights_only=True)["trainer"]
    assert saved["config"]["SOLVER.BASE_LR"] == 2e-5 and saved["iteration"] == 3
    assert saved["hooks"]["LRScheduler"] == {
        "base_lrs": [2e-5] * len(saved["hooks"]["LRScheduler"]["base_lrs"]),
        "last_epoch": 4,
    }


def test_an_unchanged_run_goes_on_with_the_very_same_learning_rate(train, output):
    before = learning_rates(output)
    ended = train("--resume", "SOLVER.MAX_ITER", 4)
    assert ended.code == 0 and "was" not in "".join(
        line for line in ended.log.splitlines() if "BASE_LR" in line and "--resume" in line
    )
    assert learning_rates(output)[-1] > before[-1]  # one more step of the warm-up


@pytest.mark.parametrize(
    "overrides, named",
    [
        (["MODEL.FPN.OUT_CHANNELS", 24], "MODEL.FPN.OUT_CHANNELS was 16 and is 24"),
        (["KD.TERMS", "('dkd',)"], "KD.TERMS was ['dkd', 'fitnet'] and is ['dkd']"),
        (["SOLVER.MOMENTUM", 0.5], "SOLVER.MOMENTUM was 0.9 and is 0.5"),
    ],
)
def test_another_model_is_refused(train, output, overrides, named):
    ended = train("--resume", *overrides)
    assert ended.code == 2 and ended.error.startswith(f"error: --resume: {named}") and "OUTPUT_DIR" in ended.error
    assert named.split()[0] in ended.log and "which is refused" in ended.log


DAMAGES = {
    "a layer": (lambda c: c["model"].pop("roi_heads.box_head.fc1.weight"), "roi_heads.box_head.fc1.weight is missing"),
    "a shape": (
        lambda c: c["model"].update({"backbone.fpn_output2.bias": torch.zeros(3)}),
        "backbone.fpn_output2.bias is (3,) in the file and (16,) in the model",
    ),
    "optimiser": (lambda c: c["trainer"].pop("_trainer"), "it has no state of the optimiser"),
    "momentum": (lambda c: c["trainer"]["_trainer"]["optimizer"]["state"].clear(), "its optimiser has no momentum"),
    "groups": (
        lambda c: c["trainer"]["_trainer"]["optimizer"]["param_groups"].pop(),
        "its optimiser is for other parameters",
    ),
    "terms": (lambda c: c.pop("kd_terms"), "it has no kd_terms"),
    "a term's weight": (
        lambda c: c["kd_terms"].pop("fitnet.adapt.0.weight"),
        "kd_terms.fitnet.adapt.0.weight is missing",
    ),
    "schedule": (lambda c: c["trainer"].pop("hooks"), "no state of the learning rate's schedule"),
    "all but weights": (lambda c: c.pop("trainer"), "it has no training state"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_checkpoint_is_refused(train, output, damage):
    change, named = DAMAGES[damage]
    edit(output, change)
    ended = train("--resume", "SOLVER.MAX_ITER", 4)
    assert ended.code == 2 and ended.error.startswith("error: --resume: ") and named in ended.error, ended
    assert "last_checkpoint" in ended.error


@pytest.mark.parametrize(
    "tag, shown", [("", "''"), ("model_0000099.pth", "'model_0000099.pth'"), ("../x.pth", "'../x.pth'")]
)
@pytest.mark.parametrize("flags", [("--resume",), ("--resume", "--eval-only")])
def test_a_tag_that_names_no_checkpoint_is_refused(train, output, tag, shown, flags):
    (output / "last_checkpoint").write_text(tag)
    ended = train(*flags)
    assert ended.code == 2 and f"names {shown}, which is not a file in its folder" in ended.error
    assert "model_final.pth" in ended.error  # what could be named


def test_a_checkpoint_of_an_older_version_goes_on_with_a_warning(train, output):
    edit(output, lambda content: content["trainer"].pop("config"))
    ended = train("--resume", "SOLVER.MAX_ITER", 4)
    assert ended.code == 0 and "has no configuration to compare with" in ended.log


def test_every_key_is_compared_but_those_of_one_version_only():
    ours = config_leaves(load_config(""))
    assert ours["KD.TERMS"] == [] and ours["SOLVER.CLIP_GRADIENTS.ENABLED"] is False
    compare_settings({}, ours)
    compare_settings({**ours, "OUTPUT_DIR": "elsewhere", "KD.GONE.WEIGHT": 1.0, "SOLVER.STEPS": [1]}, ours)
    with pytest.raises(ValueError, match=r"SEED was 5 and is -1"):
        compare_settings({**ours, "SEED": 5}, ours)


def test_a_new_run_says_what_it_overwrites_and_cannot_be_taken_for_the_old_one(train, output, monkeypatch):
    from kd_det.engine import DistillTrainer

    def killed(self):
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(DistillTrainer, "run_step", killed)
        ended = train("SOLVER.MAX_ITER", 3)
    assert ended.code == 9
    assert "has an earlier run, whose last checkpoint is model_final.pth" in ended.log
    assert (output / "model_final.pth").exists() and not (output / "last_checkpoint").exists()

    ended = train("--resume", "SOLVER.MAX_ITER", 4)
    assert ended.code == 0 and "no checkpoint in OUTPUT_DIR" in ended.log and "from iteration 0" in ended.log


def test_a_new_run_that_is_refused_leaves_the_old_one_as_it_was(train, output):
    assert train("KD.TEACHER.WEIGHTS", "nowhere.pth").code == 2
    assert (output / "last_checkpoint").read_text() == "model_final.pth"


def test_a_run_removes_what_killed_writes_have_left(train, output):
    (output / "model_0000001.pth.4711.kd_det.tmp").write_bytes(b"half")
    (output / "notes.1.tmp").write_bytes(b"a user's")
    assert train("--resume", "SOLVER.MAX_ITER", 3).code == 0
    assert not (output / "model_0000001.pth.4711.kd_det.tmp").exists() and (output / "notes.1.tmp").exists()


def hold(folder, ready):
    with run_lock(folder):
        ready.send("locked")
        signal.pause()


def test_a_folder_in_use_is_refused_and_left_alone(train, output, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.2)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=hold, args=(output, theirs))
    other.start()
    try:
        assert ours.recv() == "locked"
        before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
        for flags in [(), ("--resume",)]:
            ended = train(*flags)
            assert ended.code == 2 and "is in use by another run" in ended.error and str(output) in ended.error
        assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    finally:
        other.kill()
        other.join()


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_space(train, output):
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # of one file: enough for logs
    try:
        full = train("--resume", "SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert full.code == 1 and full.error.startswith("error: File too large") and "Free space" in full.error
    assert "model_0000003.pth" in full.error and not list(output.glob("*.tmp"))

    ended = train("--resume", "SOLVER.MAX_ITER", 5)
    assert ended.code == 0 and "Starting training from iteration 3" in ended.log


def test_divergence_in_the_first_step_saves_nothing(train, tmp_path):
    ended = train("SOLVER.MAX_ITER", 3, "KD.DKD.WEIGHT", 1e38, "KD.DKD.BETA", 1e20, "SOLVER.BASE_LR", 0.0)
    assert ended.code == 1 and ended.error.startswith("error: {'loss_dkd': ") and "at iteration 0" in ended.error
    assert "There is no checkpoint yet" in ended.log and not list((tmp_path / "output").glob("*.pth"))


def test_divergence_saves_the_last_good_state(train, tmp_path):
    ended = train(
        "SOLVER.MAX_ITER", 50, "SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_ITERS", 5, "SOLVER.CHECKPOINT_PERIOD", 1
    )
    assert ended.code == 1 and "at iteration" in ended.error and ".jpg" in ended.error
    folder = tmp_path / "output"
    saved = torch.load(folder / (folder / "last_checkpoint").read_text(), weights_only=True)
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


@pytest.mark.parametrize("flag, value", [("--num-gpus", 0), ("--num-gpus", -1), ("--machine-rank", 1)])
def test_invalid_numbers_of_processes(train, flag, value):
    ended = train(f"{flag}={value}")
    assert ended.code == 2 and ended.error.startswith(f"error: {flag} is {value}; it must be")
