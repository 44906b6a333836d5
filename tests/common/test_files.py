"""Files are complete or absent, and a folder belongs to one run."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from contextlib import contextmanager

import pytest

from kd_det.common import files
from kd_det.common.errors import SetupError
from kd_det.common.files import remove_temporary_files, run_lock, write_atomically


@contextmanager
def full_disk():
    """As on a full disk, no file can grow beyond 1000 bytes; not even the log of the tests."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_on_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "model.pth", b"old")
    with full_disk(), pytest.raises(OSError) as raised:
        write_atomically(tmp_path / "model.pth", bytes(100_000))
    assert raised.value.filename == str(tmp_path / "model.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    assert (tmp_path / "model.pth").read_bytes() == b"old"


def write_until_killed(folder, ready):
    replace = os.replace

    def killed(source, target):
        ready.send(os.path.basename(source))
        signal.pause()
        replace(source, target)

    os.replace = killed
    write_atomically(folder / "model.pth", b"content")


def test_what_a_killed_write_has_left_is_removed_and_nothing_else(tmp_path):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=write_until_killed, args=(tmp_path, theirs))
    process.start()
    left = ours.recv()
    process.kill()
    process.join()
    assert [path.name for path in tmp_path.iterdir()] == [left]
    (tmp_path / "data.1.tmp").touch()
    (tmp_path / "5.kd_det.tmp").mkdir()
    remove_temporary_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5.kd_det.tmp", "data.1.tmp"]


def hold(folder, ready):
    with run_lock(folder):
        if os.fork() == 0:  # a data worker, which lives on for a while
            time.sleep(3)
            os._exit(0)
        ready.send(os.getpid())
        signal.pause()


def test_a_folder_is_one_run_s_until_its_process_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.2)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "new", theirs))
    process.start()
    ours.recv()
    with pytest.raises(SetupError, match=r"OUTPUT_DIR '.*new' is in use by another run"), run_lock(tmp_path / "new"):
        pass
    with run_lock(tmp_path / "other"):
        pass
    process.kill()
    process.join()
    monkeypatch.setattr(files, "LOCK_SECONDS", 10.0)
    with run_lock(tmp_path / "new"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"OUTPUT_DIR '.*file' cannot be written to"), run_lock(tmp_path / "file"):
        pass
