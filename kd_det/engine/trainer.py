"""``DefaultTrainer`` for a student with a teacher: checkpoints, stopping and evaluation."""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from kd_det.checkpoint import KDCheckpointer
from kd_det.common.environment import peak_memory_mib
from kd_det.common.errors import NonFiniteLossError, SetupError
from kd_det.common.signals import StopRequested, worker_errors_deferred
from kd_det.data.mapper import NamingDatasetMapper
from kd_det.engine.evaluation import FasterCOCOEvaluator
from kd_det.engine.launch import is_user_error
from kd_det.engine.mixed_precision import check_mixed_precision, step_trainer
from kd_det.engine.resuming import config_leaves, last_checkpoint, read_resumable, set_learning_rate
from kd_det.engine.stopping import StopOnSignal, StoppableEvaluator, protect_workers, wait_for_the_others
from kd_det.engine.train_loader import build_train_loader
from kd_det.modeling import DistillRCNN

logger = logging.getLogger(__name__)


class LogPeakMemory(HookBase):
    """Logs ``peak_memory_mib``: see ``kd_det.common.environment``."""

    def after_step(self) -> None:
        peak = peak_memory_mib(torch.device(self.trainer.cfg.MODEL.DEVICE))
        self.trainer.storage.put_scalar("peak_memory_mib", peak, smoothing_hint=False)


def _position(built: list[HookBase], kind: type[HookBase]) -> int:
    return next(number for number, hook in enumerate(built) if isinstance(hook, kind))


class DistillTrainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with these differences:

    - the teacher is loaded and checked before training starts;
    - checkpoints are written whole or not at all, with the student under "model" and what the KD terms learn under
      "kd_terms";
    - Ctrl-C, SIGTERM and a non-finite loss end the training after a checkpoint of the last good state;
    - checkpoints contain the optimiser's state and the configuration, which --resume checks;
    - several processes work also without a GPU (gloo), and so does mixed precision (bfloat16).
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer.__init__, which has no factory for its checkpointer and cannot wrap a model on the CPU.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        ddp_options = {} if torch.device(cfg.MODEL.DEVICE).type == "cuda" else {"device_ids": None}
        self._trainer = step_trainer(cfg)(
            create_ddp_model(model, broadcast_buffers=False, **ddp_options), self.build_train_loader(cfg), optimizer
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        trained_beside = {"kd_terms": model.terms} if isinstance(model, DistillRCNN) else {}
        self.checkpointer = KDCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), **trained_beside)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The student on its device, with its teacher loaded."""
        check_mixed_precision(cfg)
        model = super().build_model(cfg)
        if isinstance(model, DistillRCNN):
            model.load_teacher()
        return model

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if MetadataCatalog.get(dataset_name).get("evaluator_type", "coco") != "coco":
            raise SetupError(f"DATASETS.TEST: {dataset_name!r} has no COCO evaluation.")
        sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
        return FasterCOCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=sigmas)

    def build_hooks(self) -> list[HookBase]:
        built = super().build_hooks()
        position = _position(built, hooks.EvalHook)
        built[position] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        position = _position(built, hooks.LRScheduler)
        self._stopping = StopOnSignal()
        built.insert(position + 1, self._stopping)
        built.insert(position, LogPeakMemory())
        return built

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        mapper = NamingDatasetMapper(cfg, is_train=False)
        return protect_workers(build_detection_test_loader(cfg, dataset_name, mapper=mapper))

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes from the last checkpoint in ``OUTPUT_DIR``, or loads ``MODEL.WEIGHTS`` if there is none.

        Learning rate and schedule are always those of the configuration.

        Raises:
            SetupError: the run cannot be resumed from the checkpoint: see ``kd_det.engine.resuming``.
        """
        path = last_checkpoint(self.cfg.OUTPUT_DIR) if resume else None
        if len(set(comm.all_gather(path))) > 1:
            raise SetupError(
                f"--resume: the machines have different last checkpoints in OUTPUT_DIR {self.cfg.OUTPUT_DIR!r}; give a "
                "folder that all of them share."
            )
        if path is None:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            return
        logger.info("Resuming from %s", path)
        terms = self.checkpointer.checkpointables.get("kd_terms")
        checkpoint = read_resumable(path, self.cfg, self.checkpointer.model, terms, self.optimizer)
        self.checkpointer.model.load_state_dict(checkpoint["model"], strict=False)
        if terms is not None:
            terms.load_state_dict(checkpoint["kd_terms"])
        learning_rates = list(self.scheduler.base_lrs)
        self.load_state_dict(checkpoint["trainer"])
        set_learning_rate(self.optimizer, self.scheduler, learning_rates)
        self.start_iter = self.iter + 1

    def state_dict(self) -> dict[str, Any]:
        """As ``DefaultTrainer``, with the optimiser's state, which Detectron2 0.6 leaves out, and the configuration."""
        state = TrainerBase.state_dict(self)
        return {**state, "_trainer": self._trainer.state_dict(), "config": config_leaves(self.cfg)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` returned."""
        TrainerBase.load_state_dict(self, state_dict)
        # A run that moves from the CPU to a GPU has no state of the gradients' scale yet.
        self._trainer.load_state_dict({**self._trainer.state_dict(), **state_dict["_trainer"]})

    def train(self) -> OrderedDict[str, Any] | None:
        """Trains to ``SOLVER.MAX_ITER``; returns the results of the last evaluation (None in other processes).

        Raises:
            StopRequested: a signal came; the state is saved.
            NonFiniteLossError: a loss is nan or infinite; the last good state is saved.
        """
        logger.info("Starting training from iteration %d", self.start_iter)
        self.iter = self.start_iter
        with self._stopping.noting(), EventStorage(self.start_iter) as self.storage:
            try:
                self._take_steps()
            finally:
                self._end_data_workers()
                self.after_train()
        return getattr(self, "_last_eval_results", None)

    def _take_steps(self) -> None:
        """As ``TrainerBase.train``, which would run the hooks' ``after_train`` before the state is saved."""
        try:
            self.before_train()
            for iteration in range(self.start_iter, self.max_iter):
                self.iter = iteration
                with worker_errors_deferred():
                    self.before_step()
                    self.run_step()
                    self.after_step()
            self.iter += 1  # == max_iter: tells after_train that training is complete
        except StopRequested as stop:
            self._end_stopped(stop)
            raise
        except FloatingPointError as error:
            self._end_diverged(error)
            raise NonFiniteLossError(str(error)) from error
        except Exception as error:
            number = self._stopping.signal_behind(error)
            if number:
                requested = StopRequested(number)
                self._end_stopped(requested)
                raise requested from error
            if not is_user_error(error):
                logger.exception("Exception during training:")
            raise

    def _end_data_workers(self) -> None:
        """Otherwise PyTorch waits five seconds for each worker when the process ends."""
        for name in ("_data_loader_iter", "_data_loader_iter_obj"):  # Detectron2 0.6, and upstream's main branch
            if name in vars(self._trainer):
                setattr(self._trainer, name, None)

    def after_train(self) -> None:
        """Runs the hooks; the last evaluation only if training is complete."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            if self.iter >= self.max_iter or not isinstance(hook, hooks.EvalHook):
                hook.after_train()

    def _evaluate(self) -> OrderedDict[str, Any] | None:
        evaluators = [
            StoppableEvaluator(self.build_evaluator(self.cfg, name), self._stopping) for name in self.cfg.DATASETS.TEST
        ]
        try:
            self._last_eval_results = self.test(self.cfg, self.model, evaluators)
        except StopRequested:
            if self.iter >= self.max_iter:
                logger.warning("Stopped in the last evaluation; training is complete, and --resume evaluates it.")
            raise
        return self._last_eval_results

    def _end_stopped(self, stop: StopRequested) -> None:
        if comm.is_main_process():
            finished = self._stopping.finished
            when = f"after iteration {finished}" if finished >= self.start_iter else "before its first step was done"
            logger.warning("Stopped by %s %s. %s", stop.signal.name, when, self._save_finished())
        if self._stopping.agreed:
            wait_for_the_others()

    def _end_diverged(self, error: FloatingPointError) -> None:
        if comm.is_main_process():
            if all(torch.isfinite(value).all() for value in self._weights()):
                saved = self._save_finished()
            else:
                saved = f"The weights are not finite any more. {self._last_saved()}"
            logger.error("%s Change the settings, for instance lower SOLVER.BASE_LR.", saved)
        if isinstance(error, NonFiniteLossError):  # which all processes raise together
            wait_for_the_others()

    def _weights(self) -> Iterator[torch.Tensor]:
        for part in (self.checkpointer.model, *self.checkpointer.checkpointables.values()):
            if isinstance(part, nn.Module):
                yield from part.state_dict().values()

    def _save_finished(self) -> str:
        """Saves the state after the last completed step of this run, if there is one; says how to resume."""
        finished = self._stopping.finished
        if not self._stopping.whole or finished < self.start_iter:
            return self._last_saved()
        self.iter = finished  # saved with the state: --resume starts after it
        name = "model_final" if finished + 1 == self.max_iter else f"model_{finished:07d}"
        self.checkpointer.save(name, iteration=finished)
        return f"Saved {self.checkpointer.get_checkpoint_file()}; continue with --resume."

    def _last_saved(self) -> str:
        if self.checkpointer.has_checkpoint():
            return f"The last checkpoint is {self.checkpointer.get_checkpoint_file()}; continue with --resume."
        return "There is no checkpoint yet: start again."
