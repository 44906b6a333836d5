"""Distillation losses in pure PyTorch, one a file: the only place where a loss formula is written."""

from kd_det.losses.dkd import dkd_loss
from kd_det.losses.kd import kd_loss

__all__ = ["dkd_loss", "kd_loss"]
