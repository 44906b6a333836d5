"""Signals are noted while there is something to save. Data workers ignore signals that are not from their parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time

import pytest
from torch.utils.data import DataLoader, _utils

from kd_det.common import signals
from kd_det.common.signals import (
    StopRequested,
    default_signals,
    end_at_once,
    noting_signals,
    protect_worker,
    signals_blocked,
    worker_errors_deferred,
)

SENT = [signal.SIGINT, signal.SIGTERM]


def handlers():
    return [signal.getsignal(number) for number in SENT]


@pytest.mark.parametrize("sent", SENT)
def test_the_first_signal_is_noted_and_its_repetition_is_the_same_request(sent):
    before = handlers()
    with noting_signals() as received:
        assert received.number == 0
        signal.raise_signal(sent)
        signal.raise_signal(signal.SIGTERM)  # passed on by a launcher
        assert received.number == sent
    assert handlers() == before


def test_a_second_request_ends_the_process(monkeypatch):
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), noting_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert received.number == signal.SIGTERM


def test_contexts_share_what_came_and_the_inner_one_decides():
    calls = []
    with noting_signals(end_at_once) as outer:
        with noting_signals(calls.append) as inner:
            assert inner is outer
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same request: the process is ending already
    assert calls == [signal.SIGINT] and outer.number == signal.SIGINT


@pytest.mark.parametrize("sent, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, StopRequested)])
def test_a_start_up_ends_at_once(sent, error):
    with pytest.raises(error) as raised, noting_signals(end_at_once):
        signal.raise_signal(sent)
    assert getattr(raised.value, "code", 143) == 143


def test_the_request_can_be_sent_to_another_process():
    stop = pickle.loads(pickle.dumps(StopRequested(signal.SIGTERM)))
    assert stop.code == 128 + signal.SIGTERM and stop.signal is signal.SIGTERM


def wait_to_be_ended(ready):
    ready.send(os.getpid())
    time.sleep(0.5)  # signals that are held back meanwhile
    default_signals()
    time.sleep(60)


@pytest.mark.parametrize("sent", SENT)
def test_a_process_started_with_signals_blocked_gets_them_once_it_is_ready(sent):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with signals_blocked():
        process = context.Process(target=wait_to_be_ended, args=(theirs,))
        process.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []).isdisjoint(SENT)
    os.kill(ours.recv(), sent)
    began = time.monotonic()
    process.join(30)
    assert process.exitcode == -sent and 0.3 < time.monotonic() - began < 20


@pytest.mark.parametrize("sent", SENT)
def test_data_workers_outlive_signals_of_others_but_not_their_parents(sent):
    loader = DataLoader(range(40), num_workers=2, worker_init_fn=protect_worker)
    batches = iter(loader)
    taken = [next(batches), next(batches)]  # both workers are ready
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:  # as when the process group is signalled, but for the sender
        assert os.system(f"kill -{int(sent)} {worker.pid}") == 0
    taken += list(batches)
    assert len(taken) == 40

    batches = iter(loader)
    next(batches)
    (worker, _) = [child for child in multiprocessing.active_children() if child not in workers]
    began = time.monotonic()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0 and time.monotonic() - began < 10


def test_a_forked_process_does_not_note_for_its_parent():
    with noting_signals(end_at_once) as received:
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert received.number == 0


def test_the_error_of_a_dead_worker_is_raised_where_its_data_are_read_and_tells_the_cause(monkeypatch):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    # PyTorch sets its handler once in a process, and another test may have put the one before back.
    monkeypatch.setattr(_utils.signal_handling, "_SIGCHLD_handler_set", False)
    with worker_errors_deferred():
        batches = iter(DataLoader(range(1000), num_workers=1))
        next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    updates = 0
    for _ in range(20):  # PyTorch's handler would raise within
        time.sleep(0.02)
        updates += 1
    assert updates == 20
    killed = pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) is killed by signal: Killed")
    with killed, worker_errors_deferred():
        list(batches)
    with pytest.raises(RuntimeError, match="of another kind"), worker_errors_deferred():
        raise RuntimeError("of another kind")
    del batches
