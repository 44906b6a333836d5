"""What every classification model returns.

Shape legend: B images, C classes, D channels before the classifier, H and W height and width of a map.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class ModelOutput(NamedTuple):
    """What ``model(x, return_features=True)`` returns.

    In models with an average pooling and one linear layer, ``pooled`` is the average of ``map`` over its positions, and
    ``model.classifier(pooled)`` is ``logits``. Token models return their patch tokens as a map.
    """

    logits: Tensor  # (B, C)
    map: Tensor  # (B, D, H, W), before pooling
    pooled: Tensor  # (B, D)
    stages: list[Tensor]  # (B, D_l, H_l, W_l) after each stage, largest first
    # The maps of ``stages`` before their last ReLU; a stage that does not end with one has its map here too. None: the
    # model does not say.
    preactivations: list[Tensor] | None = None


def before_relu(output: ModelOutput) -> list[Tensor]:
    """``output.preactivations``; the stages themselves where the model does not say."""
    return output.stages if output.preactivations is None else output.preactivations


class ClassificationModel(nn.Module):
    """``model(x)`` returns logits, ``model(x, return_features=True)`` a ``ModelOutput``; both are one forward pass.

    Attributes:
        pools_linearly: whether the logits are ``classifier`` of the map's average, in training too. Methods that
            classify regions of the map (SDD) need this.
        input_mean, input_std: mean and standard deviation (R, G, B; pixels scaled to [0, 1]) of the images that the
            library's pretrained weights were trained on. None for models without such weights.
        has_own_classifier: whether a pretrained model has the classifier that it was trained with. False where that
            classifier has a different number of classes and was replaced by a new one.
    """

    pools_linearly: bool = True
    input_mean: tuple[float, ...] | None = None
    input_std: tuple[float, ...] | None = None
    has_own_classifier: bool = False

    @property
    @abstractmethod
    def classifier(self) -> nn.Linear | None:
        """The linear layer that returns the logits; None where the model has no such layer."""

    def saved_settings(self) -> dict[str, Any]:
        """What model.pth must say besides the model's name, in plain values."""
        return {}

    def norms_before_relu(self) -> Sequence[nn.BatchNorm2d | None]:
        """The last batch normalisation before the last ReLU of each stage, for the margins of OFD.

        None for a stage without one, and no entries where the model does not say.
        """
        return ()


class ConvNet(ClassificationModel):
    """A network whose logits are ``classifier(average of the map)``. It takes any image size from ``reduction`` on."""

    reduction: int  # the image's size divided by the map's

    @property
    @abstractmethod
    def classifier(self) -> nn.Linear:
        """The last layer."""

    @abstractmethod
    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Returns the stage maps of images (B, 3, H, W), largest first, these maps before their last ReLU, and the map
        before pooling."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | ModelOutput:
        stages, preactivations, feature_map = self.features(x)
        pooled = F.adaptive_avg_pool2d(feature_map, 1).flatten(1)
        logits = self.classifier(pooled)
        return ModelOutput(logits, feature_map, pooled, stages, preactivations) if return_features else logits


def resize_inputs(model: nn.Module, size: int) -> None:
    """Makes ``model`` resize its images (B, 3, H, W) to ``size`` × ``size`` pixels, bilinearly. 0: no resizing.

    The state dict does not change.
    """

    def resize(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *others = args
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return images, *others

    if size:
        model.register_forward_pre_hook(resize)
