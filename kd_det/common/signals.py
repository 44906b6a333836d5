"""Ctrl-C and SIGTERM end training between two steps, so that a whole checkpoint can be written.

Batch systems and terminals send the signal to the whole process group: the training process, its data workers, and the
launcher, which may pass it on a second time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A repeated signal within this time is the same request, passed on by a launcher. A later one ends the process.
SAME_REQUEST_SECONDS = 3.0

OnFirst = Callable[[int], None]


class StopRequested(SystemExit):
    """The process was asked to stop by a signal. Its exit code is 128 + the signal's number, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self.signal),)


class Received:
    """The first signal that was received: its ``number``, or 0 if there was none yet."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._on_first: OnFirst | None = None
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def _install(self) -> None:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:  # a worker that has just been forked: its parent decides when it ends
            return
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if self._on_first is not None:
                self._on_first(number)
        elif time.monotonic() - self._since >= SAME_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(number)


_received: Received | None = None  # that of the outermost ``noting_signals``


@contextmanager
def noting_signals(on_first: OnFirst | None = None) -> Iterator[Received]:
    """Notes the first SIGINT or SIGTERM instead of ending the process. For the main thread.

    Another signal, ``SAME_REQUEST_SECONDS`` or more after it, ends the process at once. These contexts can be nested:
    the inner one uses the same ``Received``, and its ``on_first`` replaces the outer one's while it lasts.

    Args:
        on_first: called with the number of the first signal, in the signal handler; it may raise ``StopRequested``.
    """
    global _received
    if _received is not None:
        received = _received
        outer, received._on_first = received._on_first, on_first
        try:
            yield received
        finally:
            received._on_first = outer
        return
    _received = received = Received()
    received._on_first = on_first
    received._install()
    try:
        yield received
    finally:
        received._restore()
        _received = None


def end_at_once(number: int) -> NoReturn:
    """An ``on_first`` for times when there is nothing to save, such as the start-up."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise StopRequested(number)


@contextmanager
def signals_blocked(numbers: Collection[int] = SIGNALS) -> Iterator[None]:
    """Blocks SIGINT and SIGTERM, or only one of them. A process that is started meanwhile begins with them blocked, so
    that neither can end it before it is set up: see ``protect_worker`` and ``default_signals``."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def default_signals() -> None:
    """Lets SIGINT and SIGTERM end this process at once, without a traceback. Both may have been blocked before."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def protect_worker(worker_id: int = 0) -> None:
    """Keeps a data worker alive when the process group is signalled: its training process decides when it ends.

    For ``worker_init_fn`` of ``torch.utils.data.DataLoader``. SIGTERM from the training process itself, which is how
    PyTorch ends a worker, still ends it.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigtimedwait"):  # Windows, macOS: the sender of a signal is unknown
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while os.getppid() == parent:  # a killed process sends nothing
        received = signal.sigtimedwait([signal.SIGTERM], 5.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


class _WorkerErrorsNoted:
    """PyTorch's handler of SIGCHLD, whose errors are noted instead of raised."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler
        self.errors: list[RuntimeError] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            self.errors.append(error)


@contextmanager
def worker_errors_deferred() -> Iterator[None]:
    """For code that starts or reads a ``DataLoader``: the death of a data worker is raised only by that code.

    PyTorch installs a handler when the first loader of a process starts. The handler raises an error as soon as a
    worker dies, wherever the main thread is. In the middle of an update, the state could then not be saved. From the
    first such context on, the handler only notes the error. A loader that waits for a dead worker's data raises its own
    error within seconds. This context replaces that error by the noted one, which tells the cause.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        _note_worker_errors()
        yield
    except RuntimeError as error:
        handler = signal.getsignal(signal.SIGCHLD)
        if not str(error).startswith("DataLoader worker") or not isinstance(handler, _WorkerErrorsNoted):
            raise
        noted, handler.errors = handler.errors, []
        raise noted[-1] if noted else error from None
    finally:
        _note_worker_errors()


def _note_worker_errors() -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _WorkerErrorsNoted):
        signal.signal(signal.SIGCHLD, _WorkerErrorsNoted(handler))
