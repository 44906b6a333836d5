"""One kind of training step, in a process of its own that takes steps on request.

``classification.studies.steps`` starts it. Each line on its input is a number of steps to take; it answers with a line
of JSON, the seconds of each step. At the end of the input it answers with its peak memory and the size of its
distiller.
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
from classification.data.small_images import CIFAR_MEAN, CIFAR_STD, ImagesInMemory, MemoryData
from classification.trainer import Trainer, build_accelerator, build_optimizer
from kd_det.common.environment import peak_memory_mib
from kd_det.common.errors import SetupError
from kd_det.losses import dkd_loss

NOISE = "noise"  # a value of DATA.NAME in these processes alone
CLASSES = 100
TRAIN_SAMPLES = 50_000
VAL_SAMPLES = 1
SHAPE = (3, 32, 32)


def noise() -> MemoryData:
    """Noise of CIFAR-100's shape: 50,000 training samples of 100 classes, the same in every call.

    A step on it costs what a step on CIFAR-100 costs, MCLD's queue of 50,000 x 100 included. It is not mirrored in
    memory, which halves its size, because the processes of all kinds of steps exist at the same time.
    """
    return MemoryData(
        _split(TRAIN_SAMPLES), _split(VAL_SAMPLES), tuple(map(str, range(CLASSES))), CIFAR_MEAN, CIFAR_STD, mirror=False
    )


def _split(samples: int) -> ImagesInMemory:
    generator = torch.Generator().manual_seed(0)
    size = torch.Size(SHAPE).numel()
    # Each image is a different window of the same noise: a view, which needs no memory of its own.
    stream = torch.randint(256, (samples + size - 1,), generator=generator, dtype=torch.uint8)
    return ImagesInMemory(stream.unfold(0, size, 1).view(samples, *SHAPE), torch.arange(samples) % CLASSES)


def our_step(trainer: Trainer) -> Callable[[], None]:
    """The training loop's step, data included."""

    def groups() -> Iterator[list[Batch]]:
        while True:
            yield from trainer._groups()
            trainer.progress.epoch += 1

    source = groups()
    trainer.model.train()
    return lambda: trainer._take_step(next(source))


def plain_step(cfg: CfgNode, trainer: Trainer) -> Callable[[], None]:
    """A hand-written DKD step with the same networks, on one batch that is already loaded."""
    assert trainer.teacher is not None
    teacher: nn.Module = trainer.teacher.model
    student: nn.Module = trainer.step.student.train()
    optimizer = build_optimizer(cfg, student)
    images, labels, *_ = next(iter(trainer.data.train.epoch(0)))
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
    """The trainer that takes the steps. Ends the process with one line if the configuration cannot work."""
    IN_MEMORY[NOISE] = lambda root: noise()
    try:
        cfg = load_config("", overrides)
        check_config(cfg)
        return Trainer(cfg, build_accelerator(cfg), resume=False)
    except SetupError as error:
        sys.exit(f"error: {error}")


def figures_of(trainer: Trainer) -> dict[str, float]:
    """The costs of the method besides time."""
    distiller = trainer.step.distiller
    return {
        "peak_memory_mib": peak_memory_mib(trainer.accelerator.device),
        "extra_parameters": trainer.step.extra_parameters,
        "memory_entries": sum(buffer.numel() for buffer in distiller.buffers() if buffer.ndim > 1),
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
