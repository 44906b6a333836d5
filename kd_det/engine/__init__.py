"""Training and evaluation on Detectron2's engine."""

from kd_det.engine.run import run
from kd_det.engine.trainer import DistillTrainer

__all__ = ["DistillTrainer", "run"]
