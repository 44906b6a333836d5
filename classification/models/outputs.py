"""What every classification model answers.

Shape legend: B images, C classes, D channels before the classifier, H and W height and width of a map.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ModelOutput(NamedTuple):
    """``model(x, return_features=True)``.

    ``map`` is averaged over its positions, ``pooled`` is that average, and ``model.classifier`` of ``pooled`` is
    ``logits``, in models that classify so. Token models give their patch tokens as a map.
    """

    logits: Tensor  # (B, C)
    map: Tensor  # (B, D, H, W), before pooling
    pooled: Tensor  # (B, D)
    stages: list[Tensor]  # (B, D_l, H_l, W_l) after each stage, largest first
