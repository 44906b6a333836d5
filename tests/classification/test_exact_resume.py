"""A run on the CPU that is killed at any point and resumed ends with the same bits."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.classification import forked
from tests.classification.conftest import outcome

KILLS = {
    "first step": ["classification.trainer:Trainer._take_step:before:1"],
    "mid-epoch, then again": [
        "classification.trainer:Trainer._take_step:after:8",
        "classification.trainer:Trainer._take_step:before:9",
    ],
    "half-written state": ["classification.states:_write:before:6"],
    "state written, not yet named": ["classification.states:_publish:before:3"],
    "state named, older not yet removed": ["classification.states:_remove_others:before:3"],
    "half-written student": ["kd_det.common.files:os.replace:before:11"],
    "in the evaluation": ["classification.trainer:measure_accuracy:before:2"],
    "after the last epoch": ["classification.trainer:describe_run:before:1"],
}


@pytest.fixture(scope="module")
def settings(distil):
    # The adapter is state of the distiller's own; the policies draw many random numbers for each image.
    extras = ["DATA.AUTO_AUGMENT", "True", "DATA.LABEL_NOISE", "0.1", "WARMUP_EPOCHS", "2"]
    extras += ["DATA.EVAL_BATCH_SIZE", "20"]
    return [*distil, "DISTILLER", "fitnet", *extras]


def train(folder: Path, settings: list, output: str, *, kill: str = "", flags: tuple[str, ...] = (), **limits):
    return forked.train(folder, *flags, *settings, "OUTPUT_DIR", output, kill=kill, **limits)


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = train(folder, settings, "run")
    assert result.returncode == 0, result.stderr[-3000:]
    return outcome(folder / "run")


def test_killed_and_resumed_ends_with_the_same_bits(settings, uninterrupted, tmp_path):
    for name, kills in KILLS.items():
        output = name.replace(" ", "_").replace(",", "")
        flags: tuple[str, ...] = ()
        for kill in kills:
            killed = train(tmp_path, settings, output, kill=kill, flags=flags)
            assert killed.returncode == -signal.SIGKILL, (name, killed.returncode, killed.stderr[-3000:])
            flags = ("--resume",)
        resumed = train(tmp_path, settings, output, flags=flags)
        assert resumed.returncode == 0, (name, resumed.stderr[-3000:])
        assert_same(outcome(tmp_path / output), uninterrupted, name)


def test_sigterm_saves_at_once_and_loses_no_step(settings, uninterrupted, tmp_path):
    stopped = train(tmp_path, settings, "run", kill="classification.trainer:Trainer._take_step:after:7:SIGTERM")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr[-3000:]
    assert [path.name for path in (tmp_path / "run" / "states").iterdir()] == ["0-7"]
    resumed = train(tmp_path, settings, "run", flags=("--resume",))
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_same(outcome(tmp_path / "run"), uninterrupted, "SIGTERM")


def test_sigterm_in_the_evaluation_saves_before_its_end(settings, uninterrupted, tmp_path):
    stopped = train(tmp_path, settings, "run", kill="torchmetrics:MetricCollection.update:before:1:SIGTERM")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr[-3000:]
    assert "stopped by SIGTERM in epoch 1 after 12 steps; --resume continues from there" in stopped.stdout
    assert [path.name for path in (tmp_path / "run" / "states").iterdir()] == ["0-12"]
    assert not (tmp_path / "run" / "model.pth").exists()
    resumed = train(tmp_path, settings, "run", flags=("--resume",))
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_same(outcome(tmp_path / "run"), uninterrupted, "SIGTERM in the evaluation")


def test_another_configuration_cannot_be_resumed(settings, tmp_path):
    stopped = train(tmp_path, settings, "run", kill="classification.trainer:Trainer._take_step:after:7:SIGTERM")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr[-3000:]
    resumed = train(tmp_path, [*settings, "SOLVER.LR", "0.01"], "run", flags=("--resume",))
    assert resumed.returncode == 2 and "SOLVER.LR was 0.05 and is 0.01" in resumed.stderr


def assert_same(ours, theirs, name):
    state, history, result = ours
    expected, expected_history, expected_result = theirs
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), (name, key)
    assert history == expected_history, name
    for figure in ("last_top1", "last_top5", "best_top1", "best_top5", "epochs"):
        assert result[figure] == expected_result[figure], (name, figure)
