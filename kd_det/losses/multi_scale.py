"""The logits of an image and of its parts, by one application of a linear classifier (Wei et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def multi_scale_logits(feature_map: Tensor, classifier: nn.Linear, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """The logits of every region of a map: of the whole, of its 2 × 2 parts, and so on.

    A linear classifier commutes with average pooling: the regions are pooled, and all of them classified in one matrix
    product. Pooling comes first because there are as a rule fewer regions than positions (21 and 49 for a 7 × 7 map).
    Each scale is pooled from the map itself, so that region 0 is exactly what the model says about the image.

    Source: Wei, Luo, Luo, "Scaled Decoupled Distillation", CVPR 2024, section 3.

    Args:
        feature_map: the map that the model averages before its classifier (B, D, H, W).
        classifier: the model's last layer, D features to C classes.
        scales: the first must be 1; m stands for m × m regions, by adaptive average pooling: where m does not divide
            the map's side, neighbouring regions overlap by a row or column. None larger than H or W, none twice.

    Returns:
        (B, C, N) with N = Σ m², scale after scale and row after row, in the dtype that ``classifier`` gives. Both the
        map and the classifier get gradients.

    Raises:
        TypeError: ``classifier`` is not linear.
        ValueError: a shape or scales other than these.
    """
    if not isinstance(classifier, nn.Linear):
        raise TypeError(
            f"classifier must be an nn.Linear, which commutes with average pooling; got {type(classifier).__name__}."
        )
    if feature_map.ndim != 4 or feature_map.shape[1] != classifier.in_features or 0 in feature_map.shape[2:]:
        raise ValueError(
            f"feature_map must be (B, {classifier.in_features}, H, W), as the classifier has {classifier.in_features} "
            f"inputs; got {tuple(feature_map.shape)}."
        )
    _check_scales(scales, min(feature_map.shape[2:]))
    pooled = [F.adaptive_avg_pool2d(feature_map, scale).flatten(2) for scale in scales]
    logits: Tensor = classifier(torch.cat(pooled, dim=2).transpose(1, 2))
    return logits.transpose(1, 2)


def _check_scales(scales: Sequence[int], side: int) -> None:
    whole = all(isinstance(scale, int) and not isinstance(scale, bool) and scale >= 1 for scale in scales)
    if not whole or not scales or scales[0] != 1 or len(set(scales)) < len(scales):
        raise ValueError(f"scales must be different whole numbers, the first of them 1; got {scales!r}.")
    if max(scales) > side:
        raise ValueError(f"scales {scales!r}: the map's shorter side is {side}; leave out what is larger.")
