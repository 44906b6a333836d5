"""``DefaultTrainer`` for a student under a teacher: its checkpoints, its way to stop, its evaluation."""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import AMPTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from kd_det.checkpoint import KDCheckpointer
from kd_det.common.errors import SetupError
from kd_det.data.mapper import NamingDatasetMapper
from kd_det.engine.stopping import StopOnSignal, StopRequested
from kd_det.evaluation import FasterCOCOEvaluator
from kd_det.memory import peak_memory_mib
from kd_det.modeling import DistillRCNN

logger = logging.getLogger(__name__)


class LogPeakMemory(HookBase):
    """Logs ``peak_memory_mib``: see ``kd_det.memory``."""

    def after_step(self) -> None:
        peak = peak_memory_mib(torch.device(self.trainer.cfg.MODEL.DEVICE))
        self.trainer.storage.put_scalar("peak_memory_mib", peak, smoothing_hint=False)


class DistillTrainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with these differences:

    - the teacher is loaded, and refused if it does not fit, before training starts;
    - checkpoints are written whole or not at all, and hold the student under "model" and what the KD terms learn under
      "kd_terms";
    - Ctrl-C, SIGTERM and a loss that is no number end the training after a checkpoint of the last good state;
    - the optimiser's state is in the checkpoints, whatever the version of Detectron2;
    - several processes work without a GPU too (gloo).
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's: it has no factory for its checkpointer and cannot wrap a model on the CPU.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        ddp_options = {} if model.device.type == "cuda" else {"device_ids": None}
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(
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
        """The student on its device, its teacher loaded."""
        if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
            raise SetupError(
                f"SOLVER.AMP.ENABLED is True with MODEL.DEVICE {cfg.MODEL.DEVICE!r}: Detectron2's mixed precision "
                "needs a GPU. Set SOLVER.AMP.ENABLED False."
            )
        model = super().build_model(cfg)
        if isinstance(model, DistillRCNN):
            model.load_teacher()
        return model

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if MetadataCatalog.get(dataset_name).get("evaluator_type", "coco") != "coco":
            raise SetupError(f"DATASETS.TEST: {dataset_name!r} is not evaluated by COCO's rules.")
        sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
        return FasterCOCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=sigmas)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=NamingDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=NamingDatasetMapper(cfg, is_train=False))

    def build_hooks(self) -> list[HookBase]:
        built = super().build_hooks()
        position = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.LRScheduler))
        built.insert(position + 1, StopOnSignal())
        built.insert(position, LogPeakMemory())
        return built

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state too, under "_trainer", as on upstream's main branch; Detectron2 0.6 leaves it out."""
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave. A checkpoint of Detectron2 0.6's own has no momentum: a warning says so."""
        TrainerBase.load_state_dict(self, state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])
        else:
            logger.warning("--resume: the checkpoint has no optimiser state; its momentum starts from zero.")

    def train(self) -> OrderedDict[str, Any] | None:
        """Trains to ``SOLVER.MAX_ITER``; returns the results of the last evaluation (main process, else None).

        Raises:
            StopRequested: a signal asked for it; the state is saved.
            FloatingPointError: a loss is no number; the last good state is saved.
        """
        try:
            TrainerBase.train(self, self.start_iter, self.max_iter)
        except StopRequested as stop:
            saved = self._save_state(self.iter)
            logger.warning(
                "Stopped by %s after iteration %d. %s; go on with --resume.", stop.signal.name, self.iter, saved
            )
            raise
        except FloatingPointError:
            logger.error("%s; go on from there with --resume and another setting.", self._save_last_good())
            raise
        return getattr(self, "_last_eval_results", None)

    def _save_state(self, iteration: int) -> str:
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        return f"Saved {self.checkpointer.get_checkpoint_file()}"

    def _save_last_good(self) -> str:
        """Saves the state that the failed step started from, unless it is damaged itself."""
        if all(torch.isfinite(value).all() for value in self.checkpointer.model.state_dict().values()):
            self.iter -= 1  # the last iteration whose update was applied; --resume starts after it
            return self._save_state(self.iter)
        if self.checkpointer.has_checkpoint():
            return (
                f"The weights are no numbers any more; the last good state is {self.checkpointer.get_checkpoint_file()}"
            )
        return "The weights are no numbers any more, and no checkpoint was due yet (SOLVER.CHECKPOINT_PERIOD)"
