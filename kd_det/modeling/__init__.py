"""Detectron2 modules; importing this package registers them with Detectron2."""

from kd_det.modeling.backbones import TimmBackbone
from kd_det.modeling.meta_arch import DistillRCNN
from kd_det.modeling.roi_heads import DistillCascadeROIHeads, DistillRes5ROIHeads, DistillROIHeads

__all__ = ["DistillCascadeROIHeads", "DistillRCNN", "DistillROIHeads", "DistillRes5ROIHeads", "TimmBackbone"]
