"""Runs side by side, as many as the memory holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")

PEAK = "peak_memory_mib"


def run_within(
    runs: Sequence[T], train: Callable[[T], dict[str, Any]], jobs: int, memory_mib: float | None = None
) -> list[dict[str, Any]]:
    """The results of ``runs``, which are started in their order.

    With a limit of memory, runs are alone until a peak is known; from then on another is started only if the limit
    holds one more of the largest peak that was measured so far. One run at a time is always allowed.

    Args:
        runs: what to train.
        train: does so; its result has ``PEAK``, MiB, or None where that is not known.
        jobs: how many at a time, at the most.
        memory_mib: of all of them together; None: no limit.

    Raises:
        Exception: what ``train`` raised first. No run is started after that; those under way go on to their end.
    """
    waiting = deque(range(len(runs)))
    results: dict[int, dict[str, Any]] = {}
    running: dict[Future[dict[str, Any]], int] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            while waiting and _has_room(len(running), results, jobs, memory_mib):
                number = waiting.popleft()
                running[pool.submit(train, runs[number])] = number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                results[running.pop(future)] = future.result()
    return [results[number] for number in range(len(runs))]


def _has_room(running: int, results: dict[int, dict[str, Any]], jobs: int, memory_mib: float | None) -> bool:
    if running == 0 or running >= jobs or memory_mib is None:
        return running < jobs
    peaks = [result[PEAK] for result in results.values() if result[PEAK] is not None]
    return bool(peaks) and (running + 1) * max(peaks) <= memory_mib
