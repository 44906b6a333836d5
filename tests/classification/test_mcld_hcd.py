"""Runs of mcld, whose queue is resumed with the rest, and of hcd, between families."""

from __future__ import annotations

import signal

import pytest
from safetensors.torch import load_file

from tests.classification.conftest import SHORT, outcome
from tests.classification.test_exact_resume import assert_same, train

VIT = "timm/vit_tiny_patch16_224"


def last_queue(folder):
    """Logits, indices and position that the last state of a run holds."""
    (state,) = (folder / "states").iterdir()
    tensors = load_file(state / "model.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith("distiller.loss.")}


def test_mcld_killed_and_resumed_ends_with_the_same_bits_and_queue(distil, tmp_path):
    # An epoch has 12 steps of 20: by the second kill, the queue has wrapped around.
    settings = [*distil, "DISTILLER", "mcld", "MCLD.QUEUE", 200]
    whole = train(tmp_path, settings, "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    flags = ()
    for step in (3, 11):
        kill = f"classification.trainer:Trainer._take_step:after:{step}"
        killed = train(tmp_path, settings, "killed", kill=kill, flags=flags)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        flags = ("--resume",)
    resumed = train(tmp_path, settings, "killed", flags=flags)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"), "mcld")
    queue, expected = last_queue(tmp_path / "killed"), last_queue(tmp_path / "whole")
    assert sorted(queue) == [f"distiller.loss.{name}" for name in ("indices", "logits", "position")]
    assert all(queue[name].equal(value) for name, value in expected.items())
    assert (queue["distiller.loss.indices"] >= 0).all()


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    settings = ["STUDENT.NAME", VIT, *SHORT, "SOLVER.EPOCHS", 1, "SOLVER.OPTIMIZER", "adamw", "SOLVER.LR", 0.001]
    result = train(folder, settings, "vit")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "vit" / "model.pth"


@pytest.mark.parametrize("stage", [0, -1])
def test_hcd_from_a_vit_to_a_cnn(vit_file, stage, classify, tmp_path):
    teacher = ["TEACHER.NAME", VIT, "TEACHER.WEIGHTS", vit_file]
    result = classify(*teacher, *SHORT, "DISTILLER", "hcd", "HCD.STAGE", stage, "OUTPUT_DIR", "run")
    assert_it_learns(result, tmp_path / "run")


def test_hcd_from_a_cnn_to_a_cnn(distil, classify, tmp_path):
    # One epoch leaves the teacher's BatchNorm behind its weights, and its logits wild.
    result = classify(*distil, "DISTILLER", "hcd", "HCD.WEIGHT", 0.1, "OUTPUT_DIR", "run")
    assert_it_learns(result, tmp_path / "run")


def assert_it_learns(result, folder):
    assert result.returncode == 0, result.stderr[-3000:]
    (_, (first, second), _) = outcome(folder)
    assert second["loss_ce"] < first["loss_ce"]
    assert second["loss_hcd_fused_ce"] < first["loss_hcd_fused_ce"]
