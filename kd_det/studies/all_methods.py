"""The time of every method's training step, next to the plain student's and to the least that it could be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from detectron2.structures import Boxes
from torch import nn

from kd_det.modeling.terms import KDTerm, Maps, SDDTerm, build_terms
from kd_det.modeling.terms.cells import Cells, choose_boxes, classify_cells
from kd_det.studies.step import Steps, benchmark_config, seconds, sgd
from kd_det.teacher.frozen import teacher_maps

PLAIN = "student alone"


@dataclass(frozen=True)
class MethodTimes:
    """Times in seconds: medians over the rounds of one interleaved run.

    Attributes:
        step: of the method's step.
        floor: of the plain student's step, followed by the teacher's forward that the method needs.
    """

    step: float
    floor: float


def measure_methods(
    config_file: str | Sequence[str],
    methods: dict[str, tuple[str, ...]],
    device: str,
    dtype: str,
    size: int,
    images: int,
    rounds: int,
) -> dict[str, MethodTimes]:
    """Times the steps of every method in turn. The first entry, ``PLAIN``, is the plain student's.

    Args:
        config_file: of a distilling student.
        methods: a title to ``KD.TERMS``.
        device: of student and teacher.
        dtype: the precision of the teacher.
        size: height and width of the images, pixels.
        images: number of images in a batch.
        rounds: measured steps of each kind, after one that is not measured.
    """
    steps = Steps(benchmark_config(config_file, device, dtype), size, images)
    kinds: dict[str, Callable[[], None]] = {PLAIN: steps.plain}
    floors = {}
    for title, names in methods.items():
        terms = _terms(steps, config_file, device, dtype, names)
        optimizer = sgd([*_student(steps), *terms.parameters()])
        kinds[title] = partial(_distilled, steps, terms, optimizer)
        floors[title] = _Need.of(terms)
    boxes = _sampled_boxes(steps)
    for need in dict.fromkeys(floors.values()):
        kinds[need.title] = partial(_floor, steps, need, boxes)
    times = _interleave(steps, kinds, rounds)
    plain = MethodTimes(times[PLAIN], times[PLAIN])
    return {PLAIN: plain} | {title: MethodTimes(times[title], times[floors[title].title]) for title in methods}


@dataclass(frozen=True)
class _Need:
    """What a method's terms ask of the teacher beyond its maps."""

    logits: bool
    cells: Cells | None

    @classmethod
    def of(cls, terms: nn.ModuleDict) -> _Need:
        asked = [term for term in terms.values() if isinstance(term, KDTerm)]
        cells = next((term.cells for term in asked if isinstance(term, SDDTerm)), None)
        return cls(any(term.needs_logits for term in asked), cells)

    @property
    def title(self) -> str:
        return f"floor: {self}"


def _terms(
    steps: Steps, config_file: str | Sequence[str], device: str, dtype: str, names: tuple[str, ...]
) -> nn.ModuleDict:
    cfg = benchmark_config(config_file, device, dtype)
    cfg.KD.TERMS = names
    built = build_terms(cfg, Maps(steps.model.backbone.output_shape(), partial(teacher_maps, cfg)))
    return nn.ModuleDict(built).to(steps.model.device).train()


def _student(steps: Steps) -> list[nn.Parameter]:
    return [value for name, value in steps.model.named_parameters() if not name.startswith("terms.")]


def _distilled(steps: Steps, terms: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    steps.use(terms, optimizer)
    steps.distilled()


def _floor(steps: Steps, need: _Need, boxes: list[Boxes]) -> None:
    steps.plain()
    model, teacher = steps.model, steps.teacher
    features = teacher.features(steps.batch, model.input_format, model.device)
    if need.logits:
        teacher.box_logits(features, boxes)
    if need.cells is not None:
        rows = need.cells.rows(sum(map(len, boxes)), model.device)
        classify_cells(teacher.stage(features), choose_boxes(boxes, rows), need.cells)


def _sampled_boxes(steps: Steps) -> list[Boxes]:
    """The boxes that a step samples: the same in every step."""
    seen: list[list[Boxes]] = []
    pooler = steps.model.roi_heads.box_pooler
    handle = pooler.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    steps.plain()
    handle.remove()
    return seen[0]


def _interleave(steps: Steps, kinds: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for title, step in kinds.items():
            duration = seconds(steps, step)
            if number > 0:
                times[title].append(duration)
    return {title: median(values) for title, values in times.items()}
