"""One way to take a training step, in a process of its own that takes steps when told to.

Started by ``classification.studies.steps``. Each line on its input is a number of steps to take; it answers with a
line of JSON, the seconds of each. At the end of the input it answers with its peak memory and what its method adds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn import functional as F

from classification.config import check_config, load_config
from classification.data.build import IN_MEMORY
from classification.data.loaders import Batch
from classification.studies.noise import NOISE, noise
from classification.trainer import Trainer, build_accelerator, build_optimizer
from kd_det.common.environment import peak_memory_mib
from kd_det.common.errors import SetupError
from kd_det.losses import dkd_loss


def our_step(trainer: Trainer) -> Callable[[], None]:
    """The training loop's own step, data included."""

    def groups() -> Iterator[list[Batch]]:
        while True:
            yield from trainer._groups()
            trainer.progress.epoch += 1

    source = groups()
    trainer.model.train()
    return lambda: trainer._take_step(next(source))


def plain_step(cfg: CfgNode, trainer: Trainer) -> Callable[[], None]:
    """What one would write by hand for DKD with the same networks, on one batch that is there."""
    teacher: nn.Module = trainer.teacher.model
    student: nn.Module = trainer.step.student.train()
    optimizer = build_optimizer(cfg, student)
    images, labels, _ = next(iter(trainer.data.train.epoch(0)))
    settings = {"alpha": cfg.DKD.ALPHA, "beta": cfg.DKD.BETA, "temperature": cfg.DKD.TEMPERATURE}

    def step() -> None:
        with torch.no_grad():
            teacher_logits = teacher(images)
        logits = student(images)
        loss = F.cross_entropy(logits, labels) + dkd_loss(logits, teacher_logits, labels, **settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def build_trainer(overrides: list[str]) -> Trainer:
    """What takes the steps; ends the process with one line where the configuration cannot work."""
    IN_MEMORY[NOISE] = lambda root: noise()
    try:
        cfg = load_config("", overrides)
        check_config(cfg)
        return Trainer(cfg, build_accelerator(cfg), resume=False)
    except SetupError as error:
        sys.exit(f"error: {error}")


def figures_of(trainer: Trainer) -> dict[str, float]:
    """What the method takes beside time."""
    distiller = trainer.step.distiller
    return {
        "peak_memory_mib": peak_memory_mib(trainer.accelerator.device),
        "extra_parameters": sum(p.numel() for p in distiller.parameters() if p.requires_grad),
        "buffers_mib": sum(b.numel() * b.element_size() for b in distiller.buffers()) / 2**20,
    }


def main() -> None:
    by_hand, *overrides = sys.argv[1:]
    trainer = build_trainer(overrides)
    step = plain_step(trainer.cfg, trainer) if by_hand == "by_hand" else our_step(trainer)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            if trainer.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)
    print(json.dumps({**figures_of(trainer), "device": trainer.accelerator.device.type}), flush=True)


if __name__ == "__main__":
    main()
