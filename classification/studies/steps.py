"""The time of several kinds of training steps, interleaved in one run: each kind in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from classification.checkpoint import STUDENT, save_student
from classification.models import create_model
from classification.studies.step_worker import CLASSES as NOISE_CLASSES
from classification.studies.step_worker import NOISE

WARM_UP_STEPS = 3
CLASSES = {"digits": 10, NOISE: NOISE_CLASSES}


@dataclass(frozen=True)
class Arm:
    """A kind of step.

    Attributes:
        title: its name in tables and errors.
        overrides: KEY VALUE ... of its configuration.
        by_hand: a hand-written DKD loop instead of the training loop.
    """

    title: str
    overrides: tuple[str, ...] = ()
    by_hand: bool = False


class Worker:
    """An arm's process, which takes steps on request."""

    def __init__(self, arm: Arm, overrides: Sequence[str]) -> None:
        self.arm = arm
        kind = "by_hand" if arm.by_hand else "ours"
        command = [sys.executable, "-m", "classification.studies.step_worker", kind, *overrides, *arm.overrides]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.seconds: list[float] = []

    def take(self, steps: int, *, count: bool = True) -> None:
        """Takes steps, and keeps their times if ``count``; raises ``RuntimeError`` if the process has ended."""
        with suppress(BrokenPipeError):  # the answer that is missing is reported
            self.input.write(f"{steps}\n")
            self.input.flush()
        seconds = self._answer()
        if count:
            self.seconds += seconds

    def finish(self) -> dict[str, Any]:
        """Ends the process; returns its median time and its costs."""
        self.input.close()
        figures = self._answer()
        self.process.wait()
        return {"title": self.arm.title, "seconds": median(self.seconds), **figures}

    def _answer(self) -> Any:
        line = self.output.readline()
        if not line:
            raise RuntimeError(f"the steps of {self.arm.title!r} failed; its error is above")
        return json.loads(line)


def compare_steps(
    arms: Sequence[Arm],
    *,
    teacher: str,
    student: str,
    batch_size: int,
    rounds: int,
    steps: int,
    data: str = "digits",
) -> list[dict[str, Any]]:
    """Times the steps of several arms in turn.

    Args:
        arms: the kinds of steps. In each round every arm takes ``steps``, one arm after the other.
        teacher: the name of the teacher's model; its weights are random.
        student: the name of the student's model.
        batch_size: samples in a step.
        rounds: number of rounds.
        steps: steps of an arm in a round.
        data: "digits", the embedded ones, or ``NOISE``, of CIFAR-100's shape.

    Returns:
        For each arm: "title", "seconds" (median of a step), "peak_memory_mib", "extra_parameters",
        "memory_entries" (numbers in the distiller's queues and memories), "buffers_mib".

    Raises:
        SetupError: there is no such model.
        RuntimeError: an arm cannot work, or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / STUDENT
        torch.manual_seed(0)
        classes = CLASSES[data]
        create_model(student, classes)  # reports an unknown name once, and not in every worker
        save_student(weights, create_model(teacher, classes), {"name": teacher, "num_classes": classes})
        common = ["TEACHER.NAME", teacher, "TEACHER.WEIGHTS", str(weights), "STUDENT.NAME", student]
        common += ["DATA.NAME", data, "DATA.BATCH_SIZE", str(batch_size), "DISTILLER", "dkd"]
        workers = [Worker(arm, [*common, "OUTPUT_DIR", f"{folder}/{n}"]) for n, arm in enumerate(arms)]
        try:
            for worker in workers:
                worker.take(WARM_UP_STEPS, count=False)
            for _ in range(rounds):
                for worker in workers:
                    worker.take(steps)
            return [worker.finish() for worker in workers]
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
