"""Which state is saved when a run is stopped in the middle of something."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from kd_det.engine import DistillTrainer
from kd_det.engine.stopping import StopOnSignal

DEAD = RuntimeError("DataLoader worker (pid 4711) exited unexpectedly")


@pytest.fixture
def in_the_third_step(monkeypatch):
    """``in_the_third_step(action)``: what happens instead of that step."""
    run_step = DistillTrainer.run_step

    def patch(action):
        monkeypatch.setattr(
            DistillTrainer, "run_step", lambda trainer: action(trainer) if trainer.iter == 2 else run_step(trainer)
        )

    return patch


def saved(output):
    return torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)["trainer"]


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_the_death_of_a_data_worker_by_the_same_signal_is_not_an_error(train, tmp_path, in_the_third_step, delay):
    def die(trainer):  # as when a batch system signals one process after the other
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise DEAD

    in_the_third_step(die)
    ended = train("SOLVER.MAX_ITER", 5)
    assert ended.code == 128 + signal.SIGTERM and "Stopped by SIGTERM after iteration 1. Saved" in ended.log
    state = saved(tmp_path / "output")
    assert state["iteration"] == 1 and state["hooks"]["LRScheduler"]["last_epoch"] == 2


def test_the_death_of_a_data_worker_by_itself_is_an_error(train, tmp_path, in_the_third_step):
    def die(trainer):
        raise DEAD

    in_the_third_step(die)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        train("SOLVER.MAX_ITER", 5)
    assert not (tmp_path / "output" / "last_checkpoint").exists()


def test_a_half_made_update_is_not_saved(train, tmp_path, in_the_third_step):
    def fail_in_the_update(trainer):
        trainer.optimizer.register_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        trainer.optimizer.step()
        raise RuntimeError("another process has gone")

    in_the_third_step(fail_in_the_update)
    ended = train("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 1)
    assert ended.code == 128 + signal.SIGTERM and "The last checkpoint is" in ended.log
    assert saved(tmp_path / "output")["iteration"] == 1


def test_a_stop_after_the_last_step_leaves_the_final_checkpoint_without_evaluation(train, tmp_path, monkeypatch):
    after_step = StopOnSignal.after_step

    def signalled(hook):
        if hook.trainer.iter == 1:
            signal.raise_signal(signal.SIGTERM)
        after_step(hook)

    monkeypatch.setattr(StopOnSignal, "after_step", signalled)
    monkeypatch.setattr(DistillTrainer, "test", lambda *_: pytest.fail("evaluated"))
    ended = train("SOLVER.MAX_ITER", 2)
    assert ended.code == 128 + signal.SIGTERM
    assert (tmp_path / "output" / "last_checkpoint").read_text() == "model_final.pth"


def test_an_evaluation_is_left_at_once(train, tmp_path, monkeypatch, stage):
    from kd_det.engine.evaluation import FasterCOCOEvaluator

    seen = []

    def process(evaluator, inputs, outputs):
        seen.append(inputs)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FasterCOCOEvaluator, "process", process)
    ended = train("SOLVER.MAX_ITER", 9, "TEST.EVAL_PERIOD", 2, "DATASETS.TEST", "('stage_val',)")
    assert ended.code == 128 + signal.SIGINT and len(seen) == 1
    assert "Stopped by SIGINT after iteration 1. Saved" in ended.log
