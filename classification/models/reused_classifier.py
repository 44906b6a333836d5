"""A student that classifies with its teacher's classifier (SimKD)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.protocol import ClassificationModel, ModelOutput
from kd_det.common.errors import SetupError
from kd_det.losses import SimKDLoss


class ReusedClassifier(ClassificationModel):
    """A body without its own classifier, SimKD's projector, and a teacher's classifier, which is not trained.

    ``map`` is the projected map, ``pooled`` its average, and ``logits`` are the classifier's. The stages are the
    body's. All of it is needed to classify, so all of it is in the state dict.

    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022; see ``SimKDLoss``.

    Args:
        body: any model of this package with one linear classifier, which is removed.
        classes: C.
        student_channels: D of the body's ``map``.
        teacher_channels: E of the teacher's.
        size: height and width of the teacher's ``map``. A larger map of the body is pooled to it.
        reduction: see ``SimKDLoss``.

    Raises:
        SetupError: the body has no linear classifier that could be removed.
        ValueError: a number is not valid.
    """

    def __init__(
        self,
        body: ClassificationModel,
        classes: int,
        *,
        student_channels: int,
        teacher_channels: int,
        size: tuple[int, int],
        reduction: int,
    ) -> None:
        super().__init__()
        if len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
            raise ValueError(f"size must be two whole numbers, 1 or more; got {size!r}.")
        self.removed_parameters = _remove_classifier(body)
        self.body = body
        self.projector = SimKDLoss(student_channels, teacher_channels, reduction=reduction).projector
        self.reused = nn.Linear(teacher_channels, classes).requires_grad_(False)
        self.size = size
        self.settings = {
            "student_channels": student_channels,
            "teacher_channels": teacher_channels,
            "size": list(size),
            "reduction": reduction,
        }

    @property
    def classifier(self) -> nn.Linear:
        return self.reused

    @property
    def added_parameters(self) -> int:
        """How many more parameters this model has than the body with its own classifier."""
        added = [*self.projector.parameters(), *self.reused.parameters()]
        return sum(p.numel() for p in added) - self.removed_parameters

    def saved_settings(self) -> dict[str, Any]:
        return {"reused_classifier": self.settings}

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | ModelOutput:
        out = self.body(x, return_features=True)
        given, (height, width) = out.map, self.size
        size = min(given.shape[2], height), min(given.shape[3], width)
        projected = self.projector(given if given.shape[2:] == size else F.adaptive_avg_pool2d(given, size))
        pooled = projected.mean((2, 3))
        logits = self.reused(pooled)
        return out._replace(logits=logits, map=projected, pooled=pooled) if return_features else logits


def _remove_classifier(body: ClassificationModel) -> int:
    """Replaces the body's classifier by the identity; returns how many parameters it had."""
    classifier = body.classifier
    name = next((name for name, module in body.named_modules() if module is classifier), None)
    if not isinstance(classifier, nn.Linear) or name is None:
        raise SetupError("the student has no linear classifier that the teacher's could replace. Take another student.")
    parent, _, own = name.rpartition(".")
    # Not by setattr: MobileNetV2 and VGG have a property of that name.
    body.get_submodule(parent)._modules[own] = nn.Identity()
    return sum(p.numel() for p in classifier.parameters())
