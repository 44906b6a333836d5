"""The training loop: a run from its built parts to result.json."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import KwargsHandler, broadcast
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from tqdm import tqdm

from classification.checkpoint import BEST, STUDENT, find_state, restore, save_student, state_files
from classification.data import Batch, build_data
from classification.data.file_source import WorkerError
from classification.data.labels import confident_samples
from classification.models import ModelOutput
from classification.networks import build_networks
from classification.optimizers import DOT, build_optimizer, build_scheduler
from classification.results import HISTORY, RESULT, Progress, describe_run, describe_student, measure_accuracy
from classification.states import largest, place_of, save_state
from classification.step import TASK
from kd_det.common.errors import SetupError
from kd_det.common.files import write_json
from kd_det.common.images import UnreadableImageError
from kd_det.common.nonfinite import check_finite
from kd_det.common.signals import Received, StopRequested

T = TypeVar("T")

# What a process sends the others when it has no further data. Signals' numbers are larger.
NO_DATA = 1


class Trainer:
    """A run: its parts, its loop, its checkpoints.

    Args:
        cfg: the configuration, checked by ``check_config``.
        accelerator: device, precision and processes.
        resume: continue from OUTPUT_DIR's last state, if there is one.
        overwrite: delete the run that OUTPUT_DIR has.

    Raises:
        SetupError: a part cannot be built, or OUTPUT_DIR has a run and neither ``resume`` nor ``overwrite`` is given.
    """

    def __init__(self, cfg: CfgNode, accelerator: Accelerator, *, resume: bool, overwrite: bool = False) -> None:
        self.cfg, self.accelerator = cfg, accelerator
        self.output = Path(cfg.OUTPUT_DIR)
        self.data = build_data(cfg, accelerator.device, accelerator.process_index, accelerator.num_processes)
        torch.manual_seed(cfg.SEED)  # the same weights in every process
        self.teacher, self.step = build_networks(cfg, self.data, accelerator.device)
        self.distilled = self._distilled_samples()
        optimizer = build_optimizer(cfg, self.step)
        self._dot = optimizer if isinstance(optimizer, DOT) else None
        if self._dot and not self.step.distiller.uses_cross_entropy:
            raise SetupError(f"SOLVER.DOT_DELTA: DISTILLER {cfg.DISTILLER!r} has no cross-entropy. Set it to 0.0.")
        self.scheduler = build_scheduler(cfg, optimizer)
        self.model, self.optimizer = accelerator.prepare(self.step, optimizer)
        torch.manual_seed(cfg.SEED + 1 + accelerator.process_index)  # each process draws its own dropout
        self.progress, self._saved = Progress(), (0, 0)
        state = find_state(cfg, accelerator, resume=resume, overwrite=overwrite)
        if state is not None:
            self.progress = restore(state, cfg, accelerator, self.model, self.optimizer, self.scheduler)
            self._saved = place_of(state)
        self._received = Received()

    def _distilled_samples(self) -> Tensor | None:
        """The training samples that are distilled, bool (N,), by DATA.CONFIDENCE_RANGE; None: all."""
        teacher, (first, last) = self.teacher, self.cfg.DATA.CONFIDENCE_RANGE
        if teacher is None or (first, last) == (0.0, 1.0):
            return None
        return confident_samples(self.data.train, lambda images: teacher(images).logits, (first, last))

    def train(self, received: Received | None = None) -> dict[str, Any]:
        """Trains to the end; returns the content of result.json.

        Args:
            received: the signals from ``noting_signals``; one stops the run between two steps. None: there are none.

        Raises:
            StopRequested: a signal stopped the run; the state is saved.
            SetupError: an image cannot be read or a data worker died; the state is saved.
            NonFiniteLossError: a loss became nan or infinite.
            OSError: results cannot be written, for example because the disk is full.
        """
        self._received = received or self._received
        self.accelerator.init_trackers("tensorboard")
        while self.progress.epoch < self.cfg.SOLVER.EPOCHS:
            self._train_epoch()
            self._end_epoch()
        self.accelerator.end_training()
        result = describe_run(self.cfg, self.progress, self.accelerator, self.data, self.step)
        if self.accelerator.is_main_process:
            write_json(self.output / RESULT, result)
        return result

    def _train_epoch(self) -> None:
        progress, period = self.progress, self.cfg.SOLVER.CHECKPOINT_PERIOD
        self.model.train()
        self.step.distiller.start_epoch(progress.epoch)
        start = time.perf_counter()
        for batches in self._with_bar(self._watched(self._groups(), self._steps - progress.step)):
            self._take_step(batches)
            progress.step += 1
            progress.steps += 1
            progress.seconds[-1] += time.perf_counter() - start
            if period and progress.steps % period == 0:
                self._save_state()
            start = time.perf_counter()

    @property
    def _steps(self) -> int:
        """The number of steps of an epoch."""
        return -(-len(self.data.train) // self.cfg.SOLVER.ACCUMULATE)

    def _watched(self, items: Iterable[T], rounds: int) -> Iterator[T]:
        """Yields ``items``. Before each, when the state is consistent, all processes agree on whether to stop.

        Args:
            items: batches or groups of batches.
            rounds: the number of items in the process that has most.
        """
        iterator = iter(items)
        for _ in range(rounds):
            item: T | None = None
            error: Exception | None = None
            try:
                item = next(iterator, None)
            except (UnreadableImageError, WorkerError) as failure:
                error = failure
            self._stop_if_asked(error)
            if item is not None:
                yield item

    def _stop_if_asked(self, error: Exception | None) -> None:
        reason = largest(self.accelerator, self._received.number or (NO_DATA if error else 0))
        if not reason:
            return
        self._save_state()
        if reason == NO_DATA:
            remedy = " The state is saved; continue with --resume." if self._saved != (0, 0) else ""
            raise SetupError(f"{error or 'another process has no further data: see its error.'}{remedy}") from error
        if self.accelerator.is_main_process:
            place = f"in epoch {self.progress.epoch + 1} after {self.progress.step} steps"
            print(f"stopped by {signal.Signals(reason).name} {place}; --resume continues from there", flush=True)
        raise StopRequested(reason)

    def _groups(self) -> Iterator[list[Batch]]:
        """The micro-batches of each remaining step of the epoch."""
        together = self.cfg.SOLVER.ACCUMULATE
        batches = iter(self.data.train.epoch(self.progress.epoch, self.progress.step * together))
        while group := list(islice(batches, together)):
            yield group

    def _with_bar(self, groups: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        title = f"epoch {self.progress.epoch + 1}/{self.cfg.SOLVER.EPOCHS}"
        hidden = None if self.accelerator.is_main_process else True  # None: shown on a terminal
        return iter(tqdm(groups, title, self._steps, initial=self.progress.step, leave=False, disable=hidden))

    def _take_step(self, batches: list[Batch]) -> None:
        for batch in batches:
            # Gradients are summed over the processes once, with the last micro-batch.
            last = batch is batches[-1] and self._dot is None
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self._losses(batch)
                if self._dot is None:
                    self.accelerator.backward(_total(losses.values()) / len(batches))
                    continue
                task = _total(loss for name, loss in losses.items() if name.startswith(TASK))
                distillation = _total(loss for name, loss in losses.items() if not name.startswith(TASK))
                self._dot.add_gradients(task / len(batches), distillation / len(batches))
        if self._dot is not None:
            self._dot.average(self.accelerator)
        if self.cfg.SOLVER.CLIP_GRAD_NORM:
            self.accelerator.clip_grad_norm_(self.step.parameters(), self.cfg.SOLVER.CLIP_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        if self.cfg.SOLVER.CHANNELS_LAST:
            strong = None if batch.strong is None else batch.strong.contiguous(memory_format=torch.channels_last)
            batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last), strong=strong)
        rows = None if self.distilled is None else self.distilled[batch.indices].nonzero().squeeze(1)
        taught, strongly = self._teach(batch.images), self._teach(batch.strong)
        losses, logits = self.model(batch, taught, rows, self._warmup(), strongly)
        check_finite(losses, lambda: self._where(batch))
        correct = (logits.detach().argmax(1) == batch.labels).sum()
        self.progress.add(losses, correct, len(batch.labels))
        return losses

    def _teach(self, images: Tensor | None) -> ModelOutput | None:
        if self.teacher is None or images is None:
            return None
        with self.accelerator.autocast():
            output: ModelOutput = self.teacher(images)
        return output

    def _where(self, batch: Batch) -> str:
        return f"in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, samples {batch.indices.tolist()}"

    def _warmup(self) -> float:
        epochs = self.cfg.WARMUP_EPOCHS
        return min((self.progress.epoch + 1) / epochs, 1.0) if epochs else 1.0

    def _end_epoch(self) -> None:
        cfg, progress = self.cfg, self.progress
        record = {"epoch": progress.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], **self._training_means()}
        due = progress.epoch + 1 == cfg.SOLVER.EPOCHS or (progress.epoch + 1) % cfg.SOLVER.EVAL_PERIOD == 0
        if due:
            student = self._with_one_statistics()
            with self.accelerator.autocast():
                batches = self._watched(self.data.val, self.data.val.rounds)
                record |= measure_accuracy(student, batches, self.data.num_classes, self.accelerator.device)
            if self.accelerator.is_main_process:
                earlier = max((old["top1"] for old in progress.history if "top1" in old), default=-1.0)
                is_best = cfg.SOLVER.SAVE_BEST and record["top1"] > earlier
                for name in (STUDENT, BEST) if is_best else (STUDENT,):
                    save_student(self.output / name, student, describe_student(cfg, self.data, progress, record))
        self.scheduler.step()  # after the evaluation: a state saved during it belongs to this epoch
        progress.end_epoch(record)
        self._save_state()
        self._report(record)

    def _with_one_statistics(self) -> nn.Module:
        """The student, with the first process's BatchNorm statistics in all of them."""
        if self.accelerator.num_processes > 1:
            for buffer in self.step.student.buffers():
                broadcast(buffer)
        return self.step.student

    def _training_means(self) -> dict[str, float]:
        """The epoch's mean losses and accuracy over the samples of all processes."""
        names = list(self.progress.sums)
        device = self.accelerator.device
        values = [self.progress.sums[name] for name in names]
        counted = torch.stack([*values, torch.tensor(float(self.progress.samples), dtype=torch.float64, device=device)])
        *sums, samples = self.accelerator.reduce(counted, "sum").tolist()
        means = {name: value / samples for name, value in zip(names, sums, strict=True)}
        return {"train_top1": 100 * means.pop("correct"), **means}

    def _save_state(self) -> None:
        place = self.progress.epoch, self.progress.step
        if place == self._saved:
            return
        parts = (self.model, self.optimizer, self.scheduler)
        files = state_files(self.cfg, self.progress, self.accelerator, *parts)
        save_state(self.accelerator, self.output, place, files)
        self._saved = place

    def _report(self, record: dict[str, Any]) -> None:
        self.accelerator.log({key: value for key, value in record.items() if key != "epoch"}, step=record["epoch"])
        if self.accelerator.is_main_process:
            write_json(self.output / HISTORY, self.progress.history)
            figures = "  ".join(f"{key} {value:.4g}" for key, value in record.items() if key != "epoch")
            print(f"epoch {record['epoch']}/{self.cfg.SOLVER.EPOCHS}  {figures}", flush=True)


def _total(losses: Iterable[Tensor]) -> Tensor:
    return sum(losses, torch.zeros(()))


def build_accelerator(cfg: CfgNode) -> Accelerator:
    """Device, precision, processes and trackers.

    Raises:
        SetupError: WANDB is True and wandb is not installed.
    """
    trackers = ["tensorboard"]
    if cfg.WANDB:
        if find_spec("wandb") is None:
            raise SetupError("WANDB True: wandb is not installed. Install it, or set WANDB False.")
        trackers.append("wandb")
    # Queues and memories of distillers are the same in all processes, and too large to be sent in every step.
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    if cfg.TEACHER.AUTO_TRAIN:  # the other processes wait while one trains the teacher
        handlers.append(InitProcessGroupKwargs(timeout=timedelta(days=30)))
    # Otherwise Accelerate takes several processes without a GPU for separate runs.
    cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    return Accelerator(
        cpu=cpu,
        mixed_precision=cfg.SOLVER.MIXED_PRECISION,
        log_with=trackers,
        project_dir=cfg.OUTPUT_DIR,
        kwargs_handlers=handlers,
    )
