"""What every classification model answers, and the networks of the CIFAR literature answer alike.

Shape legend: see outputs.py.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.outputs import ModelOutput


class ClassificationModel(nn.Module):
    """``model(x)`` gives logits, ``model(x, return_features=True)`` a ``ModelOutput``; both are one forward pass.

    Attributes:
        classifier: the linear layer that gives the logits, or None where the model has no such layer.
        pools_linearly: whether ``classifier`` of the map's average over its positions is the logits, in training too;
            what classifies the map's regions (SDD) needs that.
        input_mean, input_std: of the images, scaled to [0, 1], that the library's pretrained weights were trained on,
            red, green, blue; None for models without such weights.
        has_own_classifier: whether a pretrained model has the classifier that it was trained with; False where that
            has another number of classes, so that a new one took its place.
    """

    classifier: nn.Linear | None
    pools_linearly: bool = True
    input_mean: tuple[float, ...] | None = None
    input_std: tuple[float, ...] | None = None
    has_own_classifier: bool = False


class ConvNet(ClassificationModel):
    """A network whose logits are ``classifier(average of the map)``. Any image size from ``reduction`` on works."""

    classifier: nn.Linear
    reduction: int  # the image's size over the map's

    @abstractmethod
    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The stage maps, largest first, and the map before pooling, of images (B, 3, H, W)."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | ModelOutput:
        stages, feature_map = self.features(x)
        pooled = F.adaptive_avg_pool2d(feature_map, 1).flatten(1)
        logits = self.classifier(pooled)
        return ModelOutput(logits, feature_map, pooled, stages) if return_features else logits
