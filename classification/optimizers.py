"""The optimisers and schedules, and DOT's optimiser, which keeps two momenta."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from kd_det.common.errors import SetupError


class DOT(Optimizer):
    """SGD with one momentum for the task's gradient and a greater one for the distillation's.

    With momenta m − delta and m + delta, the buffers v_task = (m − delta) v_task + g_task and v_kd = (m + delta) v_kd +
    g_kd, and each parameter moves by −lr (v_task + v_kd). The weight decay is part of g_task. A parameter that only one
    of the two losses reaches has the plain momentum m, and its weight decay in that gradient. With delta 0 this is SGD
    on the sum of the losses.

    Source: Zhao, Cui, Song, Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023. delta is 0.075 on CIFAR-100 and
    0.09 on ImageNet.

    Args:
        parameters: what is trained.
        lr: the learning rate.
        momentum: m.
        delta: 0 or more, and m + delta below 1.
        weight_decay: the factor on the parameter that is added to its gradient.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, momentum: float, delta: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay})
        self._gradients: dict[str, list[Tensor | None]] = {}

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def add_gradients(self, task: Tensor, distillation: Tensor) -> None:
        """Adds the gradients of two losses with one graph, which is freed. ``step`` takes their sums.

        A loss that reaches no parameter, such as that of MCLD without its terms, has no gradients.
        """
        for name, loss, keeps in (("task", task, True), ("distillation", distillation, False)):
            new: Sequence[Tensor | None] = [None] * len(self.parameters)
            if loss.requires_grad:
                new = torch.autograd.grad(loss, self.parameters, retain_graph=keeps, allow_unused=True)
            old = self._gradients.get(name, [None] * len(new))
            self._gradients[name] = [_sum(a, b) for a, b in zip(old, new, strict=True)]

    def average(self, accelerator: Accelerator) -> None:
        """Averages the gradients over the processes, which all call this."""
        if accelerator.num_processes > 1:
            for name, gradients in self._gradients.items():
                self._gradients[name] = [g if g is None else accelerator.reduce(g, "mean") for g in gradients]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Moves the parameters by the gradients that were added since the last step."""
        pairs = zip(self._gradients.pop("task"), self._gradients.pop("distillation"), strict=True)
        for group in self.param_groups:
            for p in group["params"]:
                task, distillation = next(pairs)
                if task is not None:
                    task = task.add(p, alpha=group["weight_decay"])
                elif distillation is not None:
                    distillation = distillation.add(p, alpha=group["weight_decay"])
                delta = group["delta"] if task is not None and distillation is not None else 0.0
                for name, gradient, momentum in (
                    ("task", task, group["momentum"] - delta),
                    ("distillation", distillation, group["momentum"] + delta),
                ):
                    if gradient is not None:
                        p.add_(self._buffer(p, name, gradient, momentum), alpha=-group["lr"])

    def _buffer(self, p: Tensor, name: str, gradient: Tensor, momentum: float) -> Tensor:
        key = f"{name}_momentum"
        state = self.state[p]
        state[key] = gradient.clone() if key not in state else state[key].mul_(momentum).add_(gradient)
        buffer: Tensor = state[key]
        return buffer


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def build_optimizer(cfg: CfgNode, step: nn.Module) -> Optimizer:
    """SGD with momentum, DOT, or AdamW, for every parameter that is trained.

    Raises:
        SetupError: SOLVER.DOT_DELTA does not fit the other settings.
    """
    solver = cfg.SOLVER
    parameters = [p for p in step.parameters() if p.requires_grad]
    if solver.DOT_DELTA:
        _check_dot(cfg)
        settings = {"momentum": solver.MOMENTUM, "delta": solver.DOT_DELTA, "weight_decay": solver.WEIGHT_DECAY}
        return DOT(parameters, lr=solver.LR, **settings)
    if solver.OPTIMIZER == "adamw":
        return AdamW(parameters, lr=solver.LR, weight_decay=solver.WEIGHT_DECAY)
    return SGD(parameters, lr=solver.LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY)


def _check_dot(cfg: CfgNode) -> None:
    solver, key = cfg.SOLVER, f"SOLVER.DOT_DELTA {cfg.SOLVER.DOT_DELTA}"
    if cfg.DISTILLER == "none":
        raise SetupError(f"{key}: DISTILLER 'none' has no gradient of a distillation. Set SOLVER.DOT_DELTA 0.0.")
    for name, value, fitting in (
        ("OPTIMIZER", solver.OPTIMIZER, "sgd"),
        ("CLIP_GRAD_NORM", solver.CLIP_GRAD_NORM, 0.0),
    ):
        if value != fitting:
            raise SetupError(f"{key}: DOT has two gradients, and no SOLVER.{name} {value!r}. Set it to {fitting!r}.")
    if solver.MIXED_PRECISION == "fp16":
        raise SetupError(f"{key}: DOT does not scale its losses. Set SOLVER.MIXED_PRECISION to 'bf16' or 'no'.")
    if not solver.DOT_DELTA <= solver.MOMENTUM < 1 - solver.DOT_DELTA:
        raise SetupError(
            f"{key}: SOLVER.MOMENTUM {solver.MOMENTUM} plus and minus it must be from 0 to below 1. Make it smaller."
        )


def build_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule of the learning rate, stepped once an epoch."""
    solver = cfg.SOLVER
    if solver.SCHEDULE == "cosine":
        return CosineAnnealingLR(optimizer, solver.EPOCHS)
    return MultiStepLR(optimizer, list(solver.STEPS), solver.GAMMA)
