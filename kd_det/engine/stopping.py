"""Ctrl-C and SIGTERM end training between two steps, so that a whole checkpoint can be written."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import distributed as dist


class StopRequested(SystemExit):
    """Training was asked to stop by a signal. Its exit code is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class StopOnSignal(HookBase):
    """Raises ``StopRequested`` after the step in which SIGINT or SIGTERM came; a second signal acts at once.

    Between steps (in an evaluation, say) one process stops at once; several agree at the end of the next step.
    Register it right after the hook that steps the learning rate, so that what is saved then is one state.
    """

    def __init__(self) -> None:
        self._received = 0
        self._in_step = False
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def before_step(self) -> None:
        self._in_step = True

    def after_step(self) -> None:
        self._in_step = False
        number = self._agreed()
        if number:
            raise StopRequested(number)

    def after_train(self) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = number
        self._restore()
        if not self._in_step and comm.get_world_size() == 1:
            raise StopRequested(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _agreed(self) -> int:
        if comm.get_world_size() == 1:
            return self._received
        received = torch.tensor(self._received, device=self.trainer.model.device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        return int(received)
