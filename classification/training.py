"""The training loop: a run from its configuration to result.json."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from classification import building, resuming
from classification.checkpoint import STUDENT, save_state, save_student
from classification.data.batch import Batch
from classification.evaluation import evaluate
from classification.finite import check_finite
from classification.progress import Progress
from classification.results import HISTORY, RESULT, about_student, describe_run
from kd_det.common.files import write_json
from kd_det.common.signals import Received, StopRequested, noting_signals


class Trainer:
    """A run: its parts, its loop, its checkpoints.

    Args:
        cfg: the configuration; ``building.check_config`` has passed it.
        accelerator: device, precision and processes.
        resume: go on from OUTPUT_DIR's last checkpoint, where there is one.

    Raises:
        SetupError: something that the configuration names cannot work.
    """

    def __init__(self, cfg: CfgNode, accelerator: Accelerator, *, resume: bool) -> None:
        self.cfg, self.accelerator = cfg, accelerator
        self.output = Path(cfg.OUTPUT_DIR)
        self.data = building.build_data(cfg, accelerator)
        torch.manual_seed(cfg.SEED)  # the same weights in every process
        self.teacher, self.step = building.build_networks(cfg, self.data, accelerator.device)
        self.distilled = building.distilled_samples(cfg, self.data, self.teacher)
        optimizer = building.build_optimizer(cfg, self.step)
        self.scheduler = building.build_scheduler(cfg, optimizer)
        self.model, self.optimizer = accelerator.prepare(self.step, optimizer)
        torch.manual_seed(cfg.SEED + 1 + accelerator.process_index)  # dropout, in each process its own
        self.progress = Progress()
        state = resuming.find_state(self.output, accelerator, resume=resume)
        if state is not None:
            self.progress = resuming.restore(state, cfg, accelerator, self.scheduler)

    def train(self) -> dict[str, Any]:
        """Trains to the end; returns what result.json holds.

        Raises:
            StopRequested: after SIGINT or SIGTERM, with the state saved.
            NonFiniteLossError: a loss became nan or infinite.
        """
        self.accelerator.init_trackers("tensorboard")
        with noting_signals() as received:
            while self.progress.epoch < self.cfg.SOLVER.EPOCHS:
                self._train_epoch(received)
                self._end_epoch()
        self.accelerator.end_training()
        result = describe_run(self.cfg, self.progress, self.accelerator, self.data, self.step)
        if self.accelerator.is_main_process:
            write_json(self.output / RESULT, result)
        return result

    def _train_epoch(self, received: Received) -> None:
        progress, period = self.progress, self.cfg.SOLVER.CHECKPOINT_PERIOD
        self.model.train()
        start = time.perf_counter()
        for batches in self._with_bar(self._groups()):
            self._take_step(batches)
            progress.step += 1
            progress.steps += 1
            progress.seconds[-1] += time.perf_counter() - start
            stop = self._agreed(received.number)
            if stop or (period and progress.steps % period == 0):
                self._save_state()
            if stop:
                raise StopRequested(stop)
            start = time.perf_counter()

    def _groups(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is left of the epoch."""
        together = self.cfg.SOLVER.ACCUMULATE
        batches = iter(self.data.train.epoch(self.progress.epoch, self.progress.step * together))
        while group := list(islice(batches, together)):
            yield group

    def _with_bar(self, groups: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        steps = -(-len(self.data.train) // self.cfg.SOLVER.ACCUMULATE)
        title = f"epoch {self.progress.epoch + 1}/{self.cfg.SOLVER.EPOCHS}"
        hidden = None if self.accelerator.is_main_process else True  # None: shown on a terminal
        return iter(tqdm(groups, title, steps, initial=self.progress.step, leave=False, disable=hidden))

    def _take_step(self, batches: list[Batch]) -> None:
        for batch in batches:
            # Gradients are added up over the processes once, with the last micro-batch.
            last = batch is batches[-1]
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(batch)
                self.accelerator.backward(loss / len(batches))
        if self.cfg.SOLVER.CLIP_GRAD_NORM:
            self.accelerator.clip_grad_norm_(self.step.parameters(), self.cfg.SOLVER.CLIP_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self, batch: Batch) -> Tensor:
        if self.cfg.SOLVER.CHANNELS_LAST:
            batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
        teacher_out = None
        if self.teacher is not None:
            with self.accelerator.autocast():
                teacher_out = self.teacher(batch.images)
        rows = None if self.distilled is None else self.distilled[batch.indices].nonzero().squeeze(1)
        losses, logits = self.model(batch, teacher_out, rows, self._warmup())
        check_finite(losses, batch, self.progress, self.accelerator)
        correct = (logits.detach().argmax(1) == batch.labels).sum()
        self.progress.add(losses, correct, len(batch.labels))
        return sum(losses.values(), torch.zeros((), device=logits.device))

    def _warmup(self) -> float:
        epochs = self.cfg.WARMUP_EPOCHS
        return min((self.progress.epoch + 1) / epochs, 1.0) if epochs else 1.0

    def _end_epoch(self) -> None:
        cfg, progress = self.cfg, self.progress
        record = {"epoch": progress.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], **self._training_means()}
        self.scheduler.step()
        due = progress.epoch + 1 == cfg.SOLVER.EPOCHS or (progress.epoch + 1) % cfg.SOLVER.EVAL_PERIOD == 0
        if due:
            student = self.step.student
            with self.accelerator.autocast():
                record |= evaluate(student, self.data.val, self.data.num_classes, self.accelerator.device)
            if self.accelerator.is_main_process:
                save_student(self.output / STUDENT, student, about_student(cfg, self.data, progress, record))
        progress.end_epoch(record)
        self._save_state()
        self._report(record)

    def _training_means(self) -> dict[str, float]:
        """The epoch's mean losses and accuracy over all processes' samples."""
        names = list(self.progress.sums)
        device = self.accelerator.device
        values = [self.progress.sums[name] for name in names]
        counted = torch.stack([*values, torch.tensor(float(self.progress.samples), dtype=torch.float64, device=device)])
        *sums, samples = self.accelerator.reduce(counted, "sum").tolist()
        means = {name: value / samples for name, value in zip(names, sums, strict=True)}
        return {"train_top1": 100 * means.pop("correct"), **means}

    def _save_state(self) -> None:
        extra = resuming.contents(self.cfg, self.progress, self.accelerator, self.scheduler)
        save_state(self.accelerator, self.output, (self.progress.epoch, self.progress.step), extra)

    def _report(self, record: dict[str, Any]) -> None:
        self.accelerator.log({key: value for key, value in record.items() if key != "epoch"}, step=record["epoch"])
        if self.accelerator.is_main_process:
            write_json(self.output / HISTORY, self.progress.history)
            figures = "  ".join(f"{key} {value:.4g}" for key, value in record.items() if key != "epoch")
            print(f"epoch {record['epoch']}/{self.cfg.SOLVER.EPOCHS}  {figures}", flush=True)

    def _agreed(self, number: int) -> int:
        """The signal that any process got; 0 for none."""
        if self.accelerator.num_processes == 1:
            return number
        numbers = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(numbers.max())
