"""Ctrl-C and SIGTERM end training between two steps, so that a whole checkpoint can be written.

Batch systems and terminals send the signal to the process group: to the training process, to its data workers and to
the launcher above it, which may pass it on a second time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A repeated signal within this time is the same request, passed on by a launcher. After it, it ends the process.
SAME_REQUEST_SECONDS = 3.0


class StopRequested(SystemExit):
    """Training was asked to stop by a signal. Its exit code is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class Received:
    """The first signal that came: its ``number``, 0 before."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0

    def _note(self, number: int) -> bool:
        """Whether this is the first signal, or the same request again."""
        if not self.number:
            self.number, self._since = number, time.monotonic()
        return time.monotonic() - self._since < SAME_REQUEST_SECONDS


@contextmanager
def noting_signals(on_first: Callable[[int], None] | None = None) -> Iterator[Received]:
    """Notes the first SIGINT or SIGTERM instead of ending the process. For the main thread.

    Another signal ``SAME_REQUEST_SECONDS`` later or after ends the process at once.

    Args:
        on_first: called with the number of the first signal, in the signal handler; it may raise ``StopRequested``.
    """
    received = Received()
    previous = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        first = not received.number
        if not received._note(number):
            restore()
            signal.raise_signal(number)
        elif first and on_first is not None:
            on_first(number)

    for number in SIGNALS:
        previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back. A worker process that is started meanwhile begins with both held back, so that
    none can end it before ``protect_worker`` has run."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def protect_worker(worker_id: int = 0) -> None:
    """Lets a data worker live on when the process group is signalled: its training process decides when it ends.

    For ``worker_init_fn`` of ``torch.utils.data.DataLoader``. SIGTERM from the training process itself, which is how
    PyTorch ends a worker, still ends it.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigtimedwait"):  # Windows, macOS: the sender of a signal cannot be told
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while os.getppid() == parent:  # one that was killed sends nothing
        received = signal.sigtimedwait([signal.SIGTERM], 5.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
