"""Real processes and real signals; tests/stress/signals_detection.py sends them at many more moments."""

from __future__ import annotations

import signal

import pytest

from tests.engine.command import run_here
from tests.stress.signals_detection import Case

CASES = {
    "process": Case(1, signal.SIGINT, to_group=False, early=False, delay=0.3),
    "group": Case(1, signal.SIGTERM, to_group=True, early=False, delay=0.8),
    "two processes": Case(2, signal.SIGTERM, to_group=True, early=False, delay=0.5),
    "start-up": Case(1, signal.SIGINT, to_group=True, early=True, delay=1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_signal_leaves_a_checkpoint_that_resumes(stage, name):
    case, output = CASES[name], stage.folder / name
    outcome = stage.run(case, name)
    log = (stage.folder / f"{name}.log").read_text()
    assert not outcome.faults, (outcome, log[-3000:])
    if case.early:
        assert outcome.saved is None and log.splitlines()[-1] == "Interrupted."
        return
    assert outcome.saved >= outcome.finished >= 0
    assert log.count("continue with --resume") == 1  # of the main process alone
    assert f"Stopped by {case.sent.name} after iteration {outcome.saved}. Saved {output}/model_" in log
    resumed = run_here(stage, output, "--resume", "SOLVER.MAX_ITER", outcome.saved + 2)
    assert resumed.code == 0 and f"Starting training from iteration {outcome.saved + 1}" in resumed.log, resumed


def test_two_processes_train_and_evaluate_without_a_gpu_and_share_no_folder(stage, knowledge, tmp_path):
    """With stored logits for "dkd" and the live teacher's maps for "fitnet", and data workers."""
    output = tmp_path / "output"
    flags = ["--num-gpus", 2, "--dist-url", "auto"]
    few = ["OUTPUT_DIR", output, "SOLVER.MAX_ITER", 3, "KD.TEACHER.STORED", knowledge]
    process = stage.start(output, *flags, *stage.settings, *few)
    assert process.wait(600) == 0, (tmp_path / "output.log").read_text()[-3000:]
    metrics = (output / "metrics.json").read_text()
    assert (output / "model_final.pth").exists() and "bbox/AP" in metrics and "loss_dkd" in metrics
