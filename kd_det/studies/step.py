"""What a distilled training step costs beside the plain student's: time with its breakdown, and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest.mock import patch

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
from kd_det.teacher.frozen import DTYPES, FrozenTeacher


@dataclass
class StepTimes:
    """Seconds: medians over the rounds of one interleaved run. ``parts``: of the distilled step, by name."""

    size: int
    plain: float
    distilled: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.distilled / self.plain


class Steps:
    """One student, stepped alone or under a teacher, on one batch of random images with random boxes.

    The weights are random: only the time is looked at. A step is forward, backward and SGD update.

    Args:
        cfg: of a distilling student; its teacher's configuration is used, its weights are not.
        size: height and width of the images, pixels.
        images: number of images.
    """

    def __init__(self, cfg: CfgNode, size: int, images: int, *, with_teacher: bool = True) -> None:
        torch.manual_seed(0)
        self.model: DistillRCNN = build_model(cfg).train()
        _calm(self.model)
        if with_teacher:
            teacher = teacher_config(cfg)
            frozen = build_model(teacher)
            _calm(frozen)
            dtype = DTYPES[cfg.KD.TEACHER.DTYPE]
            self.model.teacher = FrozenTeacher(frozen, input_format=teacher.INPUT.FORMAT, dtype=dtype)
        self.batch = [_image(size, cfg.MODEL.ROI_HEADS.NUM_CLASSES) for _ in range(images)]
        self.optimizer = sgd(self.model.parameters())
        self.seconds: dict[str, float] = defaultdict(float)

    def plain(self) -> None:
        """A step of the student alone: ``GeneralizedRCNN``'s own forward."""
        self._step(lambda batch: GeneralizedRCNN.forward(self.model, batch))

    def distilled(self) -> None:
        """A step with the KD terms."""
        self._step(self.model)

    def use(self, terms: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
        """Takes other KD terms, and an optimiser that has the student's parameters and theirs."""
        self.model.terms, self.optimizer = terms, optimizer

    def _step(self, forward: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]) -> None:
        torch.manual_seed(1)  # the same proposals are sampled in every step
        self.optimizer.zero_grad()
        with EventStorage(0), self._timed("forward"):
            loss = sum(forward(self.batch).values())
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
        """Notes the seconds of the teacher's two passes and of each term in ``seconds``."""
        parts = [
            (self.model.teacher, "features", "teacher backbone"),
            (self.model.teacher, "box_logits", "teacher box head"),
        ]
        parts += [(term, "forward", f"{name} loss") for name, term in self.model.terms.items()]
        with ExitStack() as stack:
            for owner, method, name in parts:
                stack.enter_context(patch.object(owner, method, self._timing(name, getattr(owner, method))))
            yield

    def _timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._timed(name):
                return function(*args, **kwargs)

        return timed


def measure_times(cfg: CfgNode, size: int, images: int, rounds: int) -> StepTimes:
    """Interleaves plain and distilled steps, ``rounds`` of each after one of each unmeasured."""
    steps = Steps(cfg, size, images)
    plain, distilled, parts = [], [], defaultdict(list)
    for number in range(rounds + 1):
        plain.append(seconds(steps, steps.plain))
        steps.seconds.clear()
        with steps.timing_the_parts():
            distilled.append(seconds(steps, steps.distilled))
        for name, value in steps.seconds.items():
            parts[name].append(value)
        if number == 0:
            plain.clear(), distilled.clear(), parts.clear()
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
    """What ``peak_memory``'s process does: resident set on the CPU, allocated tensors on a GPU, MiB."""
    steps = Steps(cfg, size, images, with_teacher=kind == "distilled")
    for _ in range(3):
        steps.distilled() if kind == "distilled" else steps.plain()
    return peak_memory_mib(steps.model.device)


def benchmark_config(config_file: str | Sequence[str], device: str, dtype: str) -> CfgNode:
    """The configuration as it is, on ``device``, the student's start random."""
    return load_config(config_file, ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "KD.TEACHER.DTYPE", dtype])


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """Without learning rate the steps stay alike, and every tensor is still read and written."""
    return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-4)


def seconds(steps: Steps, step: Callable[[], None]) -> float:
    """Wall clock of one step."""
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
    """Damps the residual branches: in a deep frozen network of random weights each would double the maps."""
    for name, module in model.backbone.named_modules():
        if name.endswith(("conv2.norm", "conv3.norm")):
            nn.init.constant_(module.weight, 0.2)
