"""Runs damaged and hostile input through a reader under a limit of memory and time, and counts how each case ends.

A target makes a case from a seeded generator and reads it. A case passes if reading succeeds or raises ``SetupError``.
It fails on any other exception, on a message of several lines, on a crash of the process, on more than ``MEMORY_MIB``
of memory beyond what the imports took, and after ``SECONDS``. Every case can be made again from its number.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_det.common.environment import peak_memory_mib
from kd_det.common.errors import SetupError

MEMORY_MIB = 1024
SECONDS = 30


@dataclass(frozen=True)
class Target:
    """A reader and its hostile input.

    Attributes:
        name: of the target.
        make: from a generator of random numbers and a folder (of this case alone) to a case: a path, say.
        read: takes the case.
    """

    name: str
    make: Callable[[random.Random, Path], Any]
    read: Callable[[Any], object]


@dataclass
class Outcome:
    """How the cases of a target ended.

    Attributes:
        cases: how many were run.
        refused: how many raised ``SetupError``; the others were read.
        failures: case number and what happened.
        peak_mib: the most memory that the cases took beyond the imports, MiB.
    """

    cases: int = 0
    refused: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    peak_mib: float = 0.0

    def summary(self, name: str) -> str:
        kinds = Counter(text.splitlines()[-1][:100] for _, text in self.failures)
        lines = [
            f"{name}: {self.cases} cases, {self.refused} refused, {self.cases - self.refused - len(self.failures)} "
            f"read, {len(self.failures)} failed, peak {self.peak_mib:.0f} MiB"
        ]
        for kind, count in kinds.most_common():
            number = next(number for number, text in self.failures if text.splitlines()[-1][:100] == kind)
            lines.append(f"  {count} x {kind} (case {number})")
        return "\n".join(lines)


def run(target: Target, cases: int, first: int = 0) -> Outcome:
    """Runs ``cases`` cases from the number ``first``, in a separate process that is restarted after a crash."""
    outcome = Outcome()
    number, last = first, first + cases
    context = multiprocessing.get_context("fork")
    while number < last:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(target, number, last, theirs))
        process.start()
        theirs.close()
        number = _collect(ours, process, outcome, number)
        process.join()
    return outcome


def _collect(pipe: Any, process: Any, outcome: Outcome, number: int) -> int:
    """Takes the reports of one process; returns the number of the next case."""
    with contextlib.suppress(EOFError):
        while True:
            number, result, peak = pipe.recv()
            if result is None:  # the case begins
                continue
            _count(outcome, number, result, peak)
            number += 1
            if peak > MEMORY_MIB:  # the peak does not fall again: the next cases need another process
                process.kill()
                process.join()
                return number
    process.join()
    if process.exitcode:
        how = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit code {process.exitcode}"
        _count(outcome, number, f"the process died of {how}", 0.0)
        number += 1
    return number


def _count(outcome: Outcome, number: int, result: str, peak: float) -> None:
    outcome.cases += 1
    outcome.peak_mib = max(outcome.peak_mib, peak)
    if result == "refused":
        outcome.refused += 1
    elif result != "read":
        outcome.failures.append((number, result))
    if peak > MEMORY_MIB:
        outcome.failures.append((number, f"took {peak:.0f} MiB"))


def _work(target: Target, first: int, last: int, pipe: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    before = peak_memory_mib(_CPU())
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = taken + 2 * MEMORY_MIB * 2**20  # of addresses, of which not all are used
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, _too_slow)
    for number in range(first, last):
        pipe.send((number, None, 0.0))
        result = _try(target, number)
        pipe.send((number, result, max(0.0, peak_memory_mib(_CPU()) - before)))
    pipe.close()


class _CPU:
    type = "cpu"


class _TooSlowError(BaseException):
    pass


def _too_slow(number: int, frame: object) -> None:
    raise _TooSlowError(f"took more than {SECONDS} s")


def _try(target: Target, number: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        case = target.make(random.Random(f"{target.name} {number}"), Path(folder))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process: others may have the cores
        try:
            target.read(case)
        except SetupError as error:
            return "refused" if len(str(error).splitlines()) == 1 else f"several lines: {str(error)[:200]!r}"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return "read"


def main(target: Target, arguments: Sequence[str] | None = None) -> None:
    """The command line of a target: runs ``--cases`` cases and prints how they ended. Exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=f"Damaged and hostile input: {target.name}.")
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the number of the first case; default: 0")
    args = parser.parse_args(arguments)
    start = time.perf_counter()
    outcome = run(target, args.cases, args.first)
    print(f"{outcome.summary(target.name)}\n{time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(1 if outcome.failures else 0)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """``content`` with one to eight random edits: bits flipped, bytes replaced, cut out, repeated, or cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        if not data:
            break
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 1, 2, 4, 8, 64)), len(data) - at)
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + length] = rng.choice((b"\xff", b"\x00", b"\x7f")) * length
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)
