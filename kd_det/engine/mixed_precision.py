"""``SOLVER.AMP.ENABLED``: Detectron2's mixed precision on a GPU; bfloat16 on a CPU, which Detectron2 does not have."""

from __future__ import annotations

import logging
import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.engine.train_loop import AMPTrainer
from detectron2.utils import comm

from kd_det.common.errors import SetupError
from kd_det.teacher.precision import bfloat16_is_faster

logger = logging.getLogger(__name__)


class CPUMixedPrecisionTrainer(SimpleTrainer):
    """``SimpleTrainer`` whose forward pass is under autocast: the CPU computes layers and products in bfloat16.

    bfloat16 has float32's range, so the gradients are not scaled, and there is no more state than ``SimpleTrainer``'s.
    """

    def run_step(self) -> None:
        """One step."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.model(data)
            total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


def step_trainer(cfg: CfgNode) -> type[SimpleTrainer]:
    """The trainer whose ``run_step`` takes the steps of a run."""
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer
    return CPUMixedPrecisionTrainer if torch.device(cfg.MODEL.DEVICE).type == "cpu" else AMPTrainer


def check_mixed_precision(cfg: CfgNode) -> None:
    """Warns in the main process if mixed precision is not faster on this CPU.

    Raises:
        SetupError: the device has no mixed precision.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    if not cfg.SOLVER.AMP.ENABLED or device.type == "cuda":
        return
    if device.type != "cpu":
        raise SetupError(
            f"SOLVER.AMP.ENABLED is True with MODEL.DEVICE {cfg.MODEL.DEVICE!r}: mixed precision needs a GPU or the "
            "CPU. Set SOLVER.AMP.ENABLED False."
        )
    if comm.is_main_process():
        faster, reason = bfloat16_is_faster(device)
        if not faster:
            logger.warning("SOLVER.AMP.ENABLED True slows this run down, because %s. Set it to False.", reason)
