"""Several processes end together: a user error is shown once, and no process is ended while it saves."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import socket
import time

import pytest
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from kd_det.common.errors import NonFiniteLossError, SetupError
from kd_det.common.signals import Received, StopRequested
from kd_det.engine import launch as launching
from kd_det.engine.launch import Report, launch


def arguments(**changed):
    given = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", **changed}
    return argparse.Namespace(**given)


def only_the_second_is_wrong(args):
    assert multiprocessing.get_start_method() == args.start_method
    comm.synchronize()
    if comm.get_rank() == 1:
        raise SetupError("KD.TERMS is wrong.")
    comm.synchronize()


def test_one_process_is_this_one():
    assert launch(lambda args: args.num_gpus, arguments()) == 1


def test_the_error_of_one_process_ends_both_and_is_the_only_one():
    given = arguments(num_gpus=2, start_method=multiprocessing.get_start_method())
    with pytest.raises(SetupError, match=r"^KD\.TERMS is wrong\.$"):
        launch(only_the_second_is_wrong, given)


@pytest.mark.parametrize(
    "changed, key",
    [
        ({"num_gpus": 0}, "--num-gpus is 0"),
        ({"num_gpus": -1}, "--num-gpus is -1"),
        ({"num_machines": 0}, "--num-machines is 0"),
        ({"num_machines": 2, "machine_rank": 2}, "--machine-rank is 2"),
        ({"num_machines": 2}, "--dist-url is 'auto'"),
        ({"num_gpus": 2, "dist_url": "tcp://127.0.0.1:99999"}, "--dist-url is 'tcp://127.0.0.1:99999'"),
    ],
)
def test_invalid_arguments(changed, key):
    with pytest.raises(SetupError, match=key):
        launch(print, arguments(**changed))


def test_a_port_in_use():
    with socket.create_server(("", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SetupError, match=r"--dist-url is .*in use.*auto"):
            launch(print, arguments(num_gpus=2, dist_url=url))


def fail(seconds, code):
    time.sleep(seconds)
    raise SystemExit(code)


def note_signals_and_save(seconds, saved):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    saved.put("started")
    time.sleep(seconds)
    saved.put("saved")


@pytest.fixture
def started():
    """``started((function, arguments), ...)``: processes that are killed at the end."""
    context, processes = multiprocessing.get_context("fork"), []

    def start(*work):
        processes.extend(context.Process(target=function, args=given) for function, given in work)
        for process in processes:
            process.start()
        return processes

    yield start
    for process in processes:
        process.kill()


def test_the_first_process_is_waited_for_when_another_has_failed(started):
    saved, queue = multiprocessing.SimpleQueue(), multiprocessing.SimpleQueue()
    processes = started((note_signals_and_save, (1.5, saved)), (fail, (0.2, 1)))
    _, failed = launching._wait(processes, Received(), queue)
    assert failed == {1: 1} and [saved.get(), saved.get()] == ["started", "saved"]


def test_the_others_are_not_waited_for_when_the_first_has_failed(started, monkeypatch):
    monkeypatch.setattr(launching, "ENDING_SECONDS", 0.5)
    saved, queue = multiprocessing.SimpleQueue(), multiprocessing.SimpleQueue()
    processes = started((fail, (0.2, 1)), (note_signals_and_save, (60, saved)))
    began = time.monotonic()
    _, failed = launching._wait(processes, Received(), queue)
    assert failed == {0: 1} and time.monotonic() - began < 20
    assert processes[1].exitcode == -signal.SIGKILL  # SIGTERM did not do


def test_a_signal_is_passed_on_once(started):
    def count(seen):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: seen.put(signal.Signals(_[0]).name))
        seen.put("started")
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            time.sleep(0.1)

    seen, received = multiprocessing.SimpleQueue(), Received()
    processes = started((count, (seen,)))
    assert seen.get() == "started"
    received.number = int(signal.SIGINT)
    launching._wait(processes, received, multiprocessing.SimpleQueue())
    names = []
    while not seen.empty():
        names.append(seen.get())
    assert names == ["SIGINT", "SIGTERM"]  # the second for those that are still starting, and block SIGINT


class Ended:
    pid = 1


def what_happened(reports=(), failed=None, stopped=0):
    launching._raise_what_happened(reports, failed or {}, [Ended(), Ended()], stopped)


def test_the_error_shown_after_several_failures():
    crash = Report(0, None, "Traceback: connection closed by peer")
    stop, error = Report(0, StopRequested(signal.SIGTERM), ""), Report(1, NonFiniteLossError("loss_dkd"), "")
    with pytest.raises(NonFiniteLossError):  # the user's error before what it led to
        what_happened([crash, error], {0: 1, 1: 1})
    with pytest.raises(NonFiniteLossError):
        what_happened([stop, error], {0: 143, 1: 1})
    with pytest.raises(StopRequested) as raised:  # the signal that came here, not the one passed on
        what_happened([stop], {0: 143}, stopped=signal.SIGINT)
    assert raised.value.code == 130
    with pytest.raises(KeyboardInterrupt):  # before there was anything to save
        what_happened([], {0: -signal.SIGTERM}, stopped=signal.SIGINT)
    with pytest.raises(ProcessExitedException, match="process 1 was ended by SIGKILL"):  # by the system, for memory
        what_happened([crash], {1: -signal.SIGKILL})
    with pytest.raises(ProcessRaisedException, match="process 0 failed:\nTraceback: connection"):
        what_happened([crash], {0: 1})
    what_happened()
