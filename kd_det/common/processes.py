"""Runs commands as separate processes: one with its progress, or several at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

PROGRESS = (" iter: ", "Inference done", "copypaste: ", "warm-up ", "s an image", "Resum")
KEPT_LINES = 40
PEAK = "peak_memory_mib"

_running: set[subprocess.Popen[str]] = set()


class CommandError(RuntimeError):
    """A command failed.

    Attributes:
        code: its exit code; if negative, minus the number of the signal that ended it.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def stream(
    command: Sequence[str],
    threads: int | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    progress: Sequence[str] = PROGRESS,
) -> None:
    """Runs a command and prints its progress lines as they appear.

    Args:
        command: the command line.
        threads: CPU threads of its computations; None: its own choice.
        environment: its environment variables; None: this process's.
        progress: lines that contain one of these texts are printed; an empty text prints every line.

    Raises:
        CommandError: the command failed; its last lines are in the message.
    """
    # Threads that spin while they wait slow each other down many times when other processes use the cores too.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **(os.environ if environment is None else environment)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    _running.add(process)
    last: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        for line in process.stdout or ():
            last.append(line.rstrip())
            if any(mark in line for mark in progress):
                print(line.rstrip(), flush=True)
    finally:
        code = process.wait()
        _running.discard(process)
    if code:
        text = "\n".join(last)
        raise CommandError(f"{text}\n`{' '.join(command)}` ended with code {code}; its last lines are above.", code)


@contextmanager
def forwarding_sigterm() -> Iterator[None]:
    """Passes SIGTERM on to the commands that ``stream`` runs. Ctrl-C reaches them anyway. Main thread only."""

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        for process in list(_running):
            process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def threads_of_each(jobs: int) -> int | None:
    """CPU threads of each run when several run at a time: an equal share of the cores. None for a single run."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def run_side_by_side(
    runs: Sequence[T], run: Callable[[T], dict[str, Any]], jobs: int, memory_mib: float | None = None
) -> list[dict[str, Any]]:
    """The results of ``runs``, which are started in their order.

    With a memory limit, the first run is alone until its peak is known. After that, another run starts only if the
    limit has room for one more run of the largest peak measured so far. One run is always allowed.

    Args:
        runs: what to run.
        run: runs one of them, in its own thread. With a memory limit its result has ``PEAK``, in MiB, or None if the
            peak is not known.
        jobs: how many run at a time, at most.
        memory_mib: the limit for all of them together; None: no limit.

    Raises:
        Exception: the first error of ``run``. No run is started after it; runs that have started are finished.
    """
    waiting = deque(range(len(runs)))
    results: dict[int, dict[str, Any]] = {}
    running: dict[Future[dict[str, Any]], int] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            while waiting and _has_room(len(running), results, jobs, memory_mib):
                number = waiting.popleft()
                running[pool.submit(run, runs[number])] = number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                results[running.pop(future)] = future.result()
    return [results[number] for number in range(len(runs))]


def _has_room(running: int, results: dict[int, dict[str, Any]], jobs: int, memory_mib: float | None) -> bool:
    if running == 0 or running >= jobs or memory_mib is None:
        return running < jobs
    peaks = [result[PEAK] for result in results.values() if result[PEAK] is not None]
    return bool(peaks) and (running + 1) * max(peaks) <= memory_mib
