"""Detectron2 modules; importing this package registers them with Detectron2."""

from kd_det.modeling.meta_arch import DistillRCNN
from kd_det.modeling.roi_heads import DistillROIHeads

__all__ = ["DistillRCNN", "DistillROIHeads"]
