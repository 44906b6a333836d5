"""Classification models under one protocol: ``create_model(name, num_classes, **settings)``."""

from classification.models.factory import create_model, model_names, short_name
from classification.models.protocol import ClassificationModel, ModelOutput, before_relu, resize_inputs
from classification.models.reused_classifier import ReusedClassifier

__all__ = [
    "ClassificationModel",
    "ModelOutput",
    "ReusedClassifier",
    "before_relu",
    "create_model",
    "model_names",
    "resize_inputs",
    "short_name",
]
