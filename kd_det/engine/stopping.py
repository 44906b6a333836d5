"""Ends training between two steps after a signal, and knows which iteration the state to save belongs to."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import distributed as dist
from torch.utils.data import DataLoader

from kd_det.common.signals import Received, StopRequested, noting_signals, protect_worker

logger = logging.getLogger(__name__)

# A data worker may be ended by a signal before the training process has noted its own.
SIGNAL_AFTER_WORKER_SECONDS = 1.0


class StopOnSignal(HookBase):
    """Raises ``StopRequested`` after the step in which SIGINT or SIGTERM came, after the same step in all processes.

    It must be registered directly after the hook that steps the learning rate: from there to the next update, weights,
    optimiser and schedule are the state of iteration ``finished``.

    Attributes:
        finished: the last completed iteration; before the first step, the iteration before it.
        whole: whether weights, optimiser and schedule are those of ``finished``.
        agreed: whether all processes raised ``StopRequested`` together.
    """

    def __init__(self) -> None:
        self.finished = -1
        self.whole = True
        self.agreed = False
        self._received = Received()
        self._at_once = False
        self._observed: Any = None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Within this context signals are noted; another one 3 seconds after the first ends the process at once."""
        with noting_signals(self._note) as self._received:
            yield

    def stop_if_asked(self) -> None:
        """Raises ``StopRequested`` in the main process if a signal has come.

        The other processes may be inside a collective operation, and have nothing to save: they are ended after the
        main process.
        """
        if self._received.number and comm.is_main_process():
            raise StopRequested(self._received.number)

    @contextmanager
    def stopping_at_once(self) -> Iterator[None]:
        """As ``stop_if_asked``, as soon as a signal comes within this context."""
        self._at_once = True
        try:
            self.stop_if_asked()
            yield
        finally:
            self._at_once = False

    def before_train(self) -> None:
        self.finished = self.trainer.start_iter - 1
        self._observed = self.trainer.optimizer.register_step_pre_hook(self._update_begins)

    def after_step(self) -> None:
        self.finished, self.whole = self.trainer.iter, True
        number = self._over_all_processes(self._received.number)
        if number:
            self.agreed = True
            raise StopRequested(number)

    def after_train(self) -> None:
        if self._observed is not None:
            self._observed.remove()

    def signal_behind(self, error: Exception) -> int:
        """The number of the signal that caused ``error``; 0 if no signal came.

        Data workers and other processes get the same signal, and may end before this one stops.
        """
        if "DataLoader worker" in str(error):
            deadline = time.monotonic() + SIGNAL_AFTER_WORKER_SECONDS
            while not self._received.number and time.monotonic() < deadline:
                time.sleep(0.02)
        return self._received.number

    def _note(self, number: int) -> None:
        del number
        if self._at_once:
            self.stop_if_asked()

    def _update_begins(self, *_: Any) -> None:
        self.whole = False

    def _over_all_processes(self, number: int) -> int:
        if comm.get_world_size() == 1:
            return number
        received = torch.tensor(number, device=self.trainer.model.device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        return int(received)


class StoppableEvaluator(DatasetEvaluator):
    """An evaluator that raises ``StopRequested`` after a signal, between images or in its final computation.

    Args:
        evaluator: evaluates.
        stop: notes signals.
    """

    def __init__(self, evaluator: DatasetEvaluator, stop: StopOnSignal) -> None:
        self._evaluator = evaluator
        self._stop = stop

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        # Between images only: a data worker that is interrupted while it sends an image would show a traceback.
        self._stop.stop_if_asked()
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        with self._stop.stopping_at_once():
            return self._evaluator.evaluate()


def wait_for_the_others() -> None:
    """Waits for the other processes: their launcher may end all when the first one ends, even one that still saves."""
    with suppress(RuntimeError):  # one has ended already
        comm.synchronize()


def protect_workers(loader: Any) -> Any:
    """Makes a loader's data workers ignore signals to the process group; returns the loader.

    Args:
        loader: a ``DataLoader``, or Detectron2's wrapper around one (its ``dataset``), not yet iterated over.
    """
    inner = loader
    while not isinstance(inner, DataLoader):
        inner = inner.dataset
    inner.worker_init_fn = partial(_start_worker, inner.worker_init_fn)
    return loader


def _start_worker(then: Any, worker_id: int) -> None:
    protect_worker()
    if then is not None:
        then(worker_id)
