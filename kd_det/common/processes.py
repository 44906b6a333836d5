"""Runs a command, shows its progress, and takes it along when this process is asked to stop."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

PROGRESS = (" iter: ", "Inference done", "copypaste: ", "warm-up ", "Resum")
KEPT_LINES = 40

_running: set[subprocess.Popen[str]] = set()


class CommandError(RuntimeError):
    """A command failed: its exit ``code``, negative for the number of a signal that ended it."""

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
    """Run a command and print its progress lines as they come.

    Args:
        command: the command line.
        threads: for its computations; None: its own choice.
        environment: its environment variables; None: this process's.
        progress: what a progress line contains; an empty string makes every line one.

    Raises:
        CommandError: the command failed; its last lines are in the message.
    """
    # Threads that spin while they wait slow each other down many times over where others use the cores too.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **(os.environ if environment is None else environment)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    _running.add(process)
    last: list[str] = []
    try:
        for line in process.stdout or ():
            last = [*last, line.rstrip()][-KEPT_LINES:]
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
    """Hands SIGTERM on to the commands that are running; Ctrl-C reaches them by itself. For the main thread."""

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        for process in list(_running):
            process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
