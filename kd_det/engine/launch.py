"""Starts the processes of a run and ends them together: after an error with one line, after a signal with a saved
state."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing import connection, resource_tracker
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT, _distributed_worker
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from kd_det.common.errors import STORAGE_ERRORS, NonFiniteLossError, SetupError, in_range, whole_number
from kd_det.common.registry import import_code, imported_code
from kd_det.common.signals import Received, StopRequested, default_signals, end_at_once, noting_signals, signals_blocked

# How long the other processes may continue after one has failed. The first process may be saving a checkpoint; once it
# has ended, there is no reason to wait for the others.
SAVING_SECONDS = 60.0
ENDING_SECONDS = 5.0

Work = Callable[[argparse.Namespace], Any]


class Report(NamedTuple):
    """How a process failed."""

    rank: int
    error: BaseException | None  # a user error; None for any other
    trace: str


def is_user_error(error: BaseException) -> bool:
    """Whether ``kd_det.common.errors.one_line_errors`` shows ``error`` as one line."""
    storage = isinstance(error, OSError) and error.errno in STORAGE_ERRORS
    return storage or isinstance(error, (SetupError, NonFiniteLossError))


def launch(work: Work, args: argparse.Namespace) -> Any:
    """Calls ``work(args)`` here, or in several processes on this machine: see ``detectron2.engine.launch``.

    SIGINT and SIGTERM are passed on to the processes; then it waits for them.

    Args:
        work: a function at the top level of a module.
        args: ``num_gpus`` (processes on this machine), ``num_machines``, ``machine_rank``, ``dist_url``, as of
            ``detectron2.engine.default_argument_parser``.

    Returns:
        what ``work`` returns; None with several processes.

    Raises:
        SetupError: an argument makes no sense.
        BaseException: what ``work`` raised in the process that failed first, if it is a user error, and
            ``StopRequested`` or ``KeyboardInterrupt`` after a signal.
        ProcessRaisedException, ProcessExitedException: a process crashed.
    """
    whole_number("--num-gpus", args.num_gpus, 1)
    whole_number("--num-machines", args.num_machines, 1)
    in_range("--machine-rank", args.machine_rank, 0, args.num_machines - 1)
    gpus = torch.cuda.device_count()
    if gpus and args.num_gpus > gpus:
        raise SetupError(f"--num-gpus is {args.num_gpus} but there are {gpus} GPUs. Give a number up to {gpus}.")
    if args.num_machines * args.num_gpus == 1:
        return work(args)
    with noting_signals() as received:
        _run_processes(work, args, _usable_url(args), received)
    return None


def _run_processes(work: Work, args: argparse.Namespace, dist_url: str, received: Received) -> None:
    resource_tracker.ensure_running()  # if the first process started it, that would end the blocking of signals
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    with closing(queue):
        # A Ctrl-C would show a traceback of their imports. SIGTERM ends them silently.
        with signals_blocked([signal.SIGINT]):
            given = (work, args, dist_url, queue, multiprocessing.get_start_method(), imported_code())
            processes = start_processes(_in_process, given, args.num_gpus, join=False).processes
        try:
            reports, failed = _wait(processes, received, queue)
        finally:
            _send(processes, signal.SIGKILL)  # a second Ctrl-C; otherwise they have ended
    _raise_what_happened(reports, failed, processes, received.number)


def _in_process(
    local_rank: int,
    work: Work,
    args: argparse.Namespace,
    dist_url: str,
    queue: Any,
    start_method: str,
    code: Sequence[str],
) -> None:
    # Until training notes signals itself there is nothing to save, and a process that waits for the others to connect
    # could not run a handler of Python's.
    default_signals()
    # A spawned process would spawn its data workers too, which takes seconds for each worker.
    multiprocessing.set_start_method(start_method, force=True)
    rank = args.machine_rank * args.num_gpus + local_rank
    world_size = args.num_machines * args.num_gpus
    try:
        for name in code:  # of --import: this is a fresh interpreter
            import_code(name)
        _distributed_worker(
            local_rank, work, world_size, args.num_gpus, args.machine_rank, dist_url, (args,), DEFAULT_TIMEOUT
        )
    except StopRequested as stop:
        queue.put(Report(rank, stop, ""))
        raise
    except Exception as error:  # bugs too: the first report is the cause of those that follow
        queue.put(Report(rank, error if is_user_error(error) else None, traceback.format_exc()))
        sys.exit(1)


def _wait(processes: Sequence[Any], received: Received, queue: Any) -> tuple[list[Report], dict[int, int]]:
    """Waits until all processes have ended; returns their reports, and the exit codes of those that failed first."""
    reports: list[Report] = []
    failed: dict[int, int] = {}
    deadline, force, passed_on = math.inf, signal.SIGTERM, False
    while alive := [process for process in processes if process.is_alive()]:
        connection.wait([process.sentinel for process in alive], timeout=0.1)
        while not queue.empty():
            reports.append(queue.get())
        if received.number and not passed_on:
            _send(alive, received.number)
            _send(alive, signal.SIGTERM)  # for processes that still block the other signal
            passed_on = True
        failed = failed or {number: each.exitcode for number, each in enumerate(processes) if each.exitcode}
        if failed:
            saving = processes[0].is_alive() and force == signal.SIGTERM
            deadline = min(deadline, time.monotonic() + (SAVING_SECONDS if saving else ENDING_SECONDS))
        if time.monotonic() > deadline:
            _send(alive, force)
            deadline, force = math.inf, signal.SIGKILL
    while not queue.empty():
        reports.append(queue.get())
    return reports, failed


def _send(processes: Sequence[Any], number: int) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)


def _raise_what_happened(
    reports: Sequence[Report], failed: dict[int, int], processes: Sequence[Any], stopped: int
) -> None:
    for_user = [report.error for report in reports if report.error is not None]
    if stopped:
        for_user = [StopRequested(stopped) if isinstance(error, StopRequested) else error for error in for_user]
    for_user.sort(key=lambda error: isinstance(error, StopRequested))  # errors first: they say more
    if for_user:
        raise for_user[0]
    if stopped:
        end_at_once(stopped)
    for number, code in failed.items():
        if code < 0:
            name = signal.Signals(-code).name
            raise ProcessExitedException(
                f"process {number} was ended by {name}", number, processes[number].pid, code, name
            )
    if reports:
        raise ProcessRaisedException(f"process {reports[0].rank} failed:\n{reports[0].trace}", reports[0].rank, 0)
    for number, code in failed.items():
        raise ProcessExitedException(
            f"process {number} ended with exit code {code}", number, processes[number].pid, code
        )


def _usable_url(args: argparse.Namespace) -> str:
    """``--dist-url``, with a free port for "auto"; raises ``SetupError`` if the first process cannot listen on it."""
    if args.dist_url == "auto":
        if args.num_machines > 1:
            raise SetupError(
                "--dist-url is 'auto', which finds a port on one machine only; give the same tcp://HOST:PORT on all "
                f"{args.num_machines} machines."
            )
        with socket.create_server(("127.0.0.1", 0)) as server:
            return f"tcp://127.0.0.1:{server.getsockname()[1]}"
    url = urlsplit(args.dist_url)
    try:
        if url.scheme == "tcp" and args.machine_rank == 0 and url.port is not None:
            socket.create_server(("", url.port)).close()
    except (OSError, ValueError, OverflowError) as error:
        raise SetupError(
            f"--dist-url is {args.dist_url!r}: {error}. Another run may use the port; give another one, or --dist-url "
            "auto on a single machine."
        ) from error
    return args.dist_url
