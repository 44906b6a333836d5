"""Times training steps of several kinds side by side: interleaved in one run, medians, and ratios of medians."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from classification.checkpoint import STUDENT, save_student
from classification.models import create_model
from classification.studies.noise import CLASSES as NOISE_CLASSES
from classification.studies.noise import NOISE

WARM_UP_STEPS = 3
CLASSES = {"digits": 10, NOISE: NOISE_CLASSES}


@dataclass(frozen=True)
class Arm:
    """A kind of step: its overrides of the configuration, or the loop written by hand."""

    title: str
    overrides: tuple[str, ...] = ()
    by_hand: bool = False


class Worker:
    """An arm's process, which takes steps when asked to."""

    def __init__(self, arm: Arm, overrides: Sequence[str]) -> None:
        self.arm = arm
        kind = "by_hand" if arm.by_hand else "ours"
        command = [sys.executable, "-m", "classification.studies.step_worker", kind, *overrides, *arm.overrides]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []

    def take(self, steps: int, *, count: bool = True) -> None:
        """Takes steps; raises ``RuntimeError`` if the process has ended."""
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        seconds = self._answer()
        if count:
            self.seconds += seconds

    def finish(self) -> dict[str, Any]:
        """Ends the process; what it took."""
        self.process.stdin.close()
        figures = self._answer()
        self.process.wait()
        return {"title": self.arm.title, "seconds": median(self.seconds), **figures}

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
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
    """Each arm's median step in seconds, peak memory, extra parameters and MiB of what its method keeps beside them.

    Args:
        arms: the kinds of steps; in each round every one takes ``steps``, one arm after the other.
        teacher, student: names of models, the weights random.
        batch_size: samples a step.
        rounds: how often.
        steps: at a time.
        data: "digits", the embedded ones, or ``NOISE``, of CIFAR-100's shape.

    Raises:
        SetupError: there is no such model.
        RuntimeError: an arm cannot work, or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / STUDENT
        torch.manual_seed(0)
        classes = CLASSES[data]
        create_model(student, classes)  # a name that does not exist is found here, and not by every worker
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
