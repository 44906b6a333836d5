"""SIGINT and SIGTERM on the command line, and data workers that die."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch
from PIL import Image
from torch.utils.data import _utils

from classification.data import build_data
from classification.data.file_source import WorkerError
from tests.classification import forked
from tests.classification.conftest import ROOT, command
from tests.classification.data.layouts import config, write_folders

# A Ctrl-C while the command imports what it needs.
WHILE_IMPORTING = """
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Interrupting())
runpy.run_module("classification.{module}", run_name="__main__")
"""


@pytest.mark.parametrize(("module", "sent"), [("train", "SIGINT"), ("train", "SIGTERM"), ("evaluate", "SIGINT")])
def test_a_signal_during_start_up_gives_no_traceback(module, sent, tmp_path):
    result = command([sys.executable, "-c", WHILE_IMPORTING.format(module=module, signal=sent)], tmp_path)
    assert result.returncode == 128 + signal.Signals[sent]
    assert result.stderr == ("Interrupted.\n" if sent == "SIGINT" else "")


def test_nothing_is_lost_at_random_moments(tmp_path):
    """One moment for each signal and target, of one process; by itself the script tries 20, and two processes."""
    script = [sys.executable, str(ROOT / "tests/stress/signals_classification.py"), "--moments", "1"]
    result = command([*script, "--processes", "1"], tmp_path)
    assert result.returncode == 0 and "4 of 4 lost nothing" in result.stdout, result.stdout + result.stderr[-3000:]


def test_a_workers_death_is_found_where_a_batch_is_waited_for(tmp_path, monkeypatch):
    """PyTorch would raise it wherever the process is, in the middle of a step for example."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    write_folders(tmp_path)
    settings = ["DATA.NAME", "folder", "DATA.ROOT", tmp_path, "DATA.WORKERS", 1, "DATA.BATCH_SIZE", 2]
    data = build_data(config(*settings), "cpu")
    batches = iter(data.train.epoch(0))
    next(batches)
    (worker,) = torch.multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)  # from its own process: ends it
    worker.join(10)
    assert worker.exitcode == 0
    with pytest.raises(WorkerError, match=r"lower DATA\.WORKERS or DATA\.BATCH_SIZE"):
        list(batches)


def test_an_unreadable_image_stops_training_with_all_saved(tmp_path):
    for number in range(24):
        path = tmp_path / "mine" / ("val" if number % 3 == 0 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(path)
    Image.new("RGB", (40, 40)).save(tmp_path / "mine" / "val" / "b" / "25.png")
    broken = tmp_path / "mine" / "val" / "b" / "26.png"
    broken.write_bytes(b"no picture")
    settings = ["DATA.NAME", "folder", "DATA.ROOT", "mine", "DATA.BATCH_SIZE", 2, "DATA.EVAL_BATCH_SIZE", 2]
    settings += ["SOLVER.EPOCHS", 1, "OUTPUT_DIR", "run"]
    stopped = forked.train(tmp_path, *settings)
    assert stopped.returncode == 2
    (line,) = stopped.stderr.splitlines()
    assert "mine/val/b/26.png" in line and line.endswith("The state is saved; continue with --resume.")
    broken.unlink()
    assert forked.train(tmp_path, "--resume", *settings).returncode == 0
