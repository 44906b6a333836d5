"""The cost of a distilled training step next to the plain student's: time, split into parts, and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from kd_det.common.environment import peak_memory_mib
from kd_det.config import load_config
from kd_det.modeling import DistillRCNN
from kd_det.teacher.config import teacher_config
from kd_det.teacher.frozen import FrozenTeacher
from kd_det.teacher.precision import teacher_dtype


@dataclass
class StepTimes:
    """Times in seconds: medians over the rounds of one interleaved run.

    Attributes:
        size: height and width of the images, pixels.
        plain: of the plain student's step.
        distilled: of the distilled step.
        parts: of the distilled step, by name.
    """

    size: int
    plain: float
    distilled: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The distilled step over the plain one."""
        return self.distilled / self.plain


class Steps:
    """Training steps of one student, alone or with a teacher, on one batch of random images with random boxes.

    A step is forward, backward and SGD update. The weights are random, because only time and memory are measured.

    Args:
        cfg: of a distilling student; its teacher's configuration is used, the teacher's weights are not.
        size: height and width of the images, pixels.
        images: number of images.
        with_teacher: False leaves out the teacher; only ``plain`` works then.
    """

    def __init__(self, cfg: CfgNode, size: int, images: int, *, with_teacher: bool = True) -> None:
        torch.manual_seed(0)
        self.model: DistillRCNN = build_model(cfg).train()
        _calm(self.model)
        if with_teacher:
            teacher = teacher_config(cfg)
            frozen = build_model(teacher)
            _calm(frozen)
            dtype = teacher_dtype(cfg.KD.TEACHER.DTYPE, torch.device(cfg.MODEL.DEVICE))
            self.model.teacher = FrozenTeacher(frozen, input_format=teacher.INPUT.FORMAT, dtype=dtype)
        self.batch = [_image(size, cfg.MODEL.ROI_HEADS.NUM_CLASSES) for _ in range(images)]
        self.optimizer: torch.optim.Optimizer = sgd(self.model.parameters())
        self.seconds: dict[str, float] = defaultdict(float)

    def plain(self) -> None:
        """A step of the student alone: ``GeneralizedRCNN``'s own forward."""
        self._step(lambda batch: GeneralizedRCNN.forward(self.model, batch))

    def distilled(self) -> None:
        """A step with the KD terms."""
        self._step(self.model)

    @property
    def teacher(self) -> FrozenTeacher:
        """The student's teacher."""
        assert self.model.teacher is not None
        return self.model.teacher

    def use(self, terms: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
        """Replaces the KD terms, and the optimiser by one with the student's parameters and theirs."""
        self.model.terms, self.optimizer = terms, optimizer

    def _step(self, forward: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]) -> None:
        torch.manual_seed(1)  # the same proposals are sampled in every step
        self.optimizer.zero_grad()
        with EventStorage(0), self._timed("forward"):
            loss = torch.stack(list(forward(self.batch).values())).sum()
        with self._timed("backward"):
            loss.backward()
        with self._timed("optimiser"):
            self.optimizer.step()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = _now(self.model.device)
        yield
        self.seconds[name] += _now(self.model.device) - start

    @contextmanager
    def timing_the_parts(self) -> Iterator[None]:
        """Adds the seconds of the teacher's two passes and of each term to ``seconds``."""
        parts: list[tuple[object, str, str]] = [
            (self.teacher, "features", "teacher backbone"),
            (self.teacher, "box_logits", "teacher box head"),
        ]
        parts += [(term, "forward", f"{name} loss") for name, term in self.model.terms.items()]
        for owner, method, name in parts:
            setattr(owner, method, self._timing(name, getattr(owner, method)))
        try:
            yield
        finally:
            for owner, method, _ in parts:
                delattr(owner, method)  # the class's own method is visible again

    def _timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._timed(name):
                return function(*args, **kwargs)

        return timed


def measure_times(cfg: CfgNode, size: int, images: int, rounds: int) -> StepTimes:
    """Times plain and distilled steps in turn: one of each that is not measured, then ``rounds`` of each."""
    steps = Steps(cfg, size, images)
    plain: list[float] = []
    distilled: list[float] = []
    parts: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        plain_seconds = seconds(steps, steps.plain)
        steps.seconds.clear()
        with steps.timing_the_parts():
            distilled_seconds = seconds(steps, steps.distilled)
        if number == 0:
            continue
        plain.append(plain_seconds)
        distilled.append(distilled_seconds)
        for name, value in steps.seconds.items():
            parts[name].append(value)
    medians = {name: median(values) for name, values in parts.items()}
    apart = sum(value for name, value in medians.items() if name.startswith("teacher") or name.endswith("loss"))
    medians["student forward"] = medians.pop("forward") - apart
    return StepTimes(size, median(plain), median(distilled), medians)


def peak_memory(arguments: list[str], kind: str) -> float:
    """Peak memory of a fresh process that takes three steps of one ``kind``, "plain" or "distilled", MiB."""
    command = [sys.executable, *arguments, "--memory-of", kind]
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    )


def run_for_memory(cfg: CfgNode, size: int, images: int, kind: str) -> float:
    """The work of ``peak_memory``'s process. Its peak memory in MiB: resident set (CPU) or allocated tensors (GPU)."""
    steps = Steps(cfg, size, images, with_teacher=kind == "distilled")
    for _ in range(3):
        steps.distilled() if kind == "distilled" else steps.plain()
    return peak_memory_mib(steps.model.device)


def benchmark_config(config_file: str | Sequence[str], device: str, dtype: str) -> CfgNode:
    """The configuration on ``device``, with a random student and the teacher in ``dtype``; unchanged otherwise."""
    return load_config(config_file, ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "KD.TEACHER.DTYPE", dtype])


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """SGD with learning rate 0: the weights do not change, and every tensor is still read and written."""
    return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-4)


def seconds(steps: Steps, step: Callable[[], None]) -> float:
    """The wall clock of one step."""
    start = _now(steps.model.device)
    step()
    return _now(steps.model.device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _image(size: int, classes: int) -> dict[str, Any]:
    instances = Instances((size, size))
    corners = torch.rand(7, 2) * size * 0.6
    instances.gt_boxes = Boxes(torch.cat([corners, corners + size * (0.1 + 0.3 * torch.rand(7, 2))], dim=1))
    instances.gt_classes = torch.randint(0, classes, (7,))
    return {
        "image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8),
        "instances": instances,
        "file_name": "random",
    }


def _calm(model: nn.Module) -> None:
    """Damps the residual branches: in a deep network with random weights each of them would double the maps."""
    backbone: nn.Module = model.get_submodule("backbone")
    # Frozen normalisation keeps its weights as buffers.
    for name, weight in chain(backbone.named_parameters(), backbone.named_buffers()):
        if name.endswith(("conv2.norm.weight", "conv3.norm.weight")):
            nn.init.constant_(weight, 0.2)
