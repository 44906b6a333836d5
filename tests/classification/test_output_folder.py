"""OUTPUT_DIR: no run deletes another's results, shares a folder with a running one, or is stopped by a killed one's
files."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from classification import states, train
from classification.trainer import Trainer
from kd_det.common.files import run_lock
from tests.classification import forked
from tests.classification.conftest import outcome
from tests.classification.test_exact_resume import assert_same

SHORT = ["STUDENT.NAME", "resnet8", "DATA.BATCH_SIZE", 20, "SOLVER.EPOCHS", 2, "SOLVER.STEPS", "(1,)"]
KILL = "classification.trainer:Trainer._take_step:after:7:SIGTERM"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A working folder with a finished run, "whole", and one that was stopped after 7 steps, "stopped"."""
    folder = tmp_path_factory.mktemp("folder")
    assert forked.train(folder, *SHORT, "OUTPUT_DIR", "whole").returncode == 0
    assert forked.train(folder, *SHORT, "OUTPUT_DIR", "stopped", kill=KILL).returncode == 128 + signal.SIGTERM
    return folder


@pytest.fixture
def begin(finished, monkeypatch, capsys):
    """``begin(*arguments)`` runs the command up to its first step; returns its error line, "" if it gets there."""
    monkeypatch.chdir(finished)
    monkeypatch.setattr(Trainer, "train", lambda self, received: pytest.exit("training began"))

    def run(*arguments: object) -> str:
        try:
            train.main([*map(str, arguments)])
        except SystemExit as ended:
            assert ended.code == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1
            return error
        except pytest.exit.Exception:
            return ""
        raise AssertionError("no step was asked for")

    return run


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "kept", "expected"),
    [
        ([], None, "OUTPUT_DIR 'run' has a finished run. Give --resume to continue it, --overwrite to delete it"),
        ([], {"states"}, "OUTPUT_DIR 'run' has an unfinished run, in epoch 3 after 0 steps. Give --resume"),
        ([], {"model.pth"}, "OUTPUT_DIR 'run' has a model.pth without a run's state. Give --resume"),
        ([], {"history.json"}, "OUTPUT_DIR 'run' has a history.json without a run's state"),
        (["--resume"], {"model.pth"}, "has a model.pth without a run's state, but no state to resume from. Give"),
        (["--resume"], {"model.pth", "result.json"}, "has a finished run, but no state to resume from"),
    ],
)
def test_results_are_not_deleted_unasked(finished, begin, flags, kept, expected, tmp_path):
    output = tmp_path / "run"
    os.system(f"cp -r '{finished}/whole' '{output}'")
    for path in list(output.iterdir()) if kept else []:
        if path.name not in kept:
            os.system(f"rm -r '{path}'")
    before = files(output)
    line = begin(*flags, *SHORT, "OUTPUT_DIR", output)
    assert expected in line.replace(str(output), "run")
    after = files(output)
    after.pop(next(iter(after.keys() - before.keys()), None), None)  # the lock
    assert after == before


def test_overwrite_deletes_once_all_is_checked(finished, begin, tmp_path):
    output = tmp_path / "run"
    os.system(f"cp -r '{finished}/whole' '{output}'")
    (output / "model_best.pth").write_bytes(b"")
    before = files(output)
    assert "absent.pth" in begin("--overwrite", *SHORT, "OUTPUT_DIR", output, "STUDENT.WEIGHTS", "absent.pth")
    own = output / "model.pth"
    assert "of OUTPUT_DIR" in begin("--overwrite", *SHORT, "OUTPUT_DIR", output, "STUDENT.WEIGHTS", own)
    assert files(output) == before
    assert begin("--overwrite", *SHORT, "OUTPUT_DIR", output) == ""
    assert {path.name for path in output.iterdir()} == {".kd_det.lock", "tensorboard"}


def test_one_run_at_a_time(finished, begin):
    with run_lock(finished / "whole"):
        line = begin("--resume", *SHORT, "OUTPUT_DIR", "whole")
    assert "OUTPUT_DIR 'whole' is in use by another run" in line


def test_a_file_in_place_of_the_folder(finished, begin):
    (finished / "file").write_text("")
    assert "OUTPUT_DIR 'file' cannot be written to" in begin(*SHORT, "OUTPUT_DIR", "file")


def test_a_full_disk_keeps_the_state_before_and_leaves_nothing(finished, tmp_path):
    os.system(f"cp -r '{finished}/stopped' '{tmp_path}/run'")
    resume = ["--resume", *SHORT, "OUTPUT_DIR", "run"]
    full = forked.train(tmp_path, *resume, file_limit=100_000)
    assert full.returncode == 1, full.stderr
    (line,) = full.stderr.splitlines()
    assert line.startswith("error: File too large") and "Free space" in line
    assert [path.name for path in (tmp_path / "run" / "states").iterdir()] == ["0-7"]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert forked.train(tmp_path, *resume).returncode == 0
    assert_same(outcome(tmp_path / "run"), outcome(finished / "whole"), "after a full disk")


def test_what_killed_runs_left_is_removed(finished, begin):
    output = finished / "stopped"
    left = [output / "states" / "0-9.partial" / "model.safetensors", output / "model.pth.123.kd_det.tmp"]
    mine = [output / "states" / "notes.partial", output / "notes.tmp"]
    for path in left + mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"bytes")
    assert begin("--resume", *SHORT, "OUTPUT_DIR", "stopped") == ""
    assert not any(path.exists() for path in left) and all(path.exists() for path in mine)


def test_a_failed_write_is_removed_and_named(tmp_path, monkeypatch):
    from accelerate import Accelerator

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(states, "write_atomically", full)
    with pytest.raises(OSError, match=r"No space left.*0-3\.partial/random_states_0\.pkl"):
        states.save_state(Accelerator(cpu=True), tmp_path, (0, 3), {states.PROGRESS: {}})
    assert list((tmp_path / "states").iterdir()) == []
