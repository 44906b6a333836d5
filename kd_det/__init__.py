"""Knowledge distillation for Detectron2 detectors and image classifiers."""

__version__ = "0.1.0"
