"""The cost of training steps of several kinds, the arms: time, split into parts, and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from kd_det.studies.stored_batch import add_knowledge
from kd_det.teacher.config import teacher_config
from kd_det.teacher.frozen import FrozenTeacher
from kd_det.teacher.precision import teacher_dtype


@dataclass(frozen=True)
class Arm:
    """A kind of training step.

    Attributes:
        title: in tables.
        overrides: KEY, VALUE, ... of the benchmark's configuration.
        teacher: whether the student has a live teacher.
        option: the option that adds the arm; "": it is always measured.
    """

    title: str
    overrides: tuple[object, ...] = ()
    teacher: bool = True
    option: str = ""


MEMORY_RUNS = 3  # the C library's allocator moves the resident set of one by some percent
ALONE, AMP = ("KD.TERMS", ()), ("SOLVER.AMP.ENABLED", True)
STORED = ("KD.TEACHER.STORED", "random")  # not read: the batch has random knowledge
PLAIN_ARM, DISTILLED_ARM = "plain", "distilled"
ARMS = {
    PLAIN_ARM: Arm("plain", ALONE, teacher=False),
    DISTILLED_ARM: Arm("distilled"),
    "plain_amp": Arm("plain, AMP", (*ALONE, *AMP), teacher=False, option="amp"),
    "distilled_amp": Arm("distilled, AMP", AMP, option="amp"),
    "stored_dkd": Arm("stored DKD", ("KD.TERMS", ("dkd",), *STORED), teacher=False, option="stored"),
    "teacher_boxes": Arm("teacher's boxes", (*ALONE, *STORED), teacher=False, option="stored"),
}


@dataclass(frozen=True)
class ArmTimes:
    """Times of an arm in seconds: medians over the rounds of one interleaved run.

    Attributes:
        step: of the whole step.
        ratio: of the step to the first arm's in the same round. On a busy machine this varies less than the times.
        parts: of the step's parts, by name.
    """

    step: float
    ratio: float
    parts: dict[str, float]


class Steps:
    """Training steps of one student, alone or with a teacher, on one batch of random images with random boxes.

    A step is forward, backward and SGD update, with ``SOLVER.AMP.ENABLED`` the forward under autocast. The weights are
    random, because only time and memory are measured.

    Args:
        cfg: of a distilling student; its teacher's configuration is used, the teacher's weights are not.
        size: height and width of the images, pixels.
        images: number of images.
        with_teacher: False leaves out the teacher; ``distilled`` works then only if no term needs it.
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
        if self.model.stored is not None:
            add_knowledge(self.model, self.batch, cfg)
        self.mixed_precision: bool = cfg.SOLVER.AMP.ENABLED
        self.optimizer: torch.optim.Optimizer = sgd(self.model.parameters())
        self.seconds: dict[str, float] = defaultdict(float)

    def plain(self) -> None:
        """A step of the student alone: ``GeneralizedRCNN``'s own forward."""
        self._step(lambda batch: GeneralizedRCNN.forward(self.model, batch))

    def distilled(self) -> None:
        """A step with the KD terms; without terms it is a plain one."""
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
        amp = torch.autocast(self.model.device.type, enabled=self.mixed_precision)
        with EventStorage(0), self._timed("forward"), amp:
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
        """Adds the seconds of the teacher's two passes, if there is one, and of each term to ``seconds``."""
        parts: list[tuple[object, str, str]] = []
        if self.model.teacher is not None:
            parts += [(self.teacher, "features", "teacher backbone"), (self.teacher, "box_logits", "teacher box head")]
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


def measure_arms(
    config_file: str | Sequence[str],
    arms: Mapping[str, Arm],
    device: str,
    dtype: str,
    size: int,
    images: int,
    rounds: int,
) -> dict[str, ArmTimes]:
    """Times the steps of the arms in turn: one of each that is not measured, then ``rounds`` of each.

    Args:
        config_file: of a distilling student.
        arms: by name.
        device: of student and teacher.
        dtype: a value of ``KD.TEACHER.DTYPE``.
        size: height and width of the images, pixels.
        images: number of images in a batch.
        rounds: see above.
    """
    steps = {name: steps_of(arm, config_file, device, dtype, size, images) for name, arm in arms.items()}
    times: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in arms}
    for number in range(rounds + 1):
        for name, of_arm in steps.items():
            of_arm.seconds.clear()
            with of_arm.timing_the_parts():
                whole = seconds(of_arm, of_arm.distilled)
            if number == 0:
                continue
            times[name].append(whole)
            for part, value in of_arm.seconds.items():
                parts[name][part].append(value)
    first = times[next(iter(arms))]
    ratios = {name: median(own / other for own, other in zip(times[name], first, strict=True)) for name in arms}
    return {name: ArmTimes(median(times[name]), ratios[name], _apart(parts[name])) for name in arms}


def _apart(parts: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The medians, with the teacher and the terms taken out of the forward pass, which they are a part of."""
    medians = {name: median(values) for name, values in parts.items()}
    inside = sum(value for name, value in medians.items() if name.startswith("teacher") or name.endswith("loss"))
    medians["student forward"] = medians.pop("forward") - inside
    return medians


def steps_of(
    arm: Arm,
    config_file: str | Sequence[str],
    device: str,
    dtype: str,
    size: int,
    images: int,
    overrides: Sequence[object] = (),
) -> Steps:
    """The steps of an arm: see ``measure_arms``; ``overrides`` come after the arm's own."""
    cfg = benchmark_config(config_file, device, dtype, (*arm.overrides, *overrides))
    return Steps(cfg, size, images, with_teacher=arm.teacher)


def peak_memory(arguments: list[str], arm: str) -> float:
    """Peak memory of a process that takes three steps of one arm, MiB: the median of ``MEMORY_RUNS`` processes."""
    command = [sys.executable, *arguments, "--memory-of", arm]
    runs = (subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(MEMORY_RUNS))
    return median(float(json.loads(run.stdout.splitlines()[-1])) for run in runs)


def run_for_memory(steps: Steps) -> float:
    """The work of ``peak_memory``'s process. Its peak memory in MiB: resident set (CPU) or allocated tensors (GPU)."""
    for _ in range(3):
        steps.distilled()
    return peak_memory_mib(steps.model.device)


def benchmark_config(
    config_file: str | Sequence[str], device: str, dtype: str, overrides: Sequence[object] = ()
) -> CfgNode:
    """The configuration on ``device``, with a random student, the teacher in ``dtype``, and ``overrides``."""
    fixed = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "KD.TEACHER.DTYPE", dtype]
    return load_config(config_file, [*fixed, *overrides])


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
