"""A network's answers to a whole data set.

Shape legend: N samples, C classes, D channels before the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from classification.data.loaders import Batch
from classification.models.protocol import ModelOutput


class Answers(NamedTuple):
    """Of all samples, in their order, on the CPU."""

    pooled: Tensor  # (N, D) float32: the penultimate features
    logits: Tensor  # (N, C) float32
    labels: Tensor  # (N,) int64


@torch.inference_mode()
def collect(answer: Callable[[Tensor], ModelOutput], batches: Iterable[Batch]) -> Answers:
    """What a network answers, in float32 whatever precision it was trained in.

    Args:
        answer: from images (B, 3, H, W); a network in evaluation mode.
        batches: at least one.
    """
    parts: list[Answers] = []
    for batch in batches:
        output = answer(batch.images)
        parts.append(Answers(output.pooled.float().cpu(), output.logits.float().cpu(), batch.labels.cpu()))
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))
