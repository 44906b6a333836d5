"""Ctrl-C and SIGTERM end training between two steps, so that a whole checkpoint can be written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequested(SystemExit):
    """Training was asked to stop by a signal. Its exit code is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Received:
    """``number`` is that of the signal which came, 0 before."""

    number = 0


@contextmanager
def noting_signals() -> Iterator[Received]:
    """Notes the first SIGINT or SIGTERM instead of dying of it; a second acts at once. For the main thread."""
    received = Received()
    previous = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.number = number
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
