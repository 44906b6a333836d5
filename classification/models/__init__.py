"""Classification models under one protocol: ``create_model(name, num_classes, **settings)``."""

from classification.models.factory import create_model, model_names, short_name
from classification.models.protocol import ClassificationModel, ModelOutput, resize_inputs

__all__ = ["ClassificationModel", "ModelOutput", "create_model", "model_names", "resize_inputs", "short_name"]
