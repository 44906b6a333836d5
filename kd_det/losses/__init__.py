"""Distillation losses in pure PyTorch, one to a file. Nothing here needs detectron2."""

from kd_det.losses.dkd import dkd_loss
from kd_det.losses.kd import kd_loss

__all__ = ["dkd_loss", "kd_loss"]
