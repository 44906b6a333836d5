"""The trained student for use without kd_det: a plain Detectron2 checkpoint, TorchScript, ONNX."""

from kd_det.export.student import FORMATS, Exported, export_student

__all__ = ["FORMATS", "Exported", "export_student"]
