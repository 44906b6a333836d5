"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from classification.data.loaders import Batch


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], num_classes: int, device: torch.device) -> dict[str, float]:
    """The accuracy of ``model`` in percent: {"top1": ..., "top5": ...}; its training mode is left as it was.

    Args:
        model: images (B, 3, H, W) to logits (B, C).
        batches: this process's share of the samples; torchmetrics adds up the processes' counts.
        num_classes: C. With fewer than five classes, top5 counts all of them.
        device: where the samples are.
    """
    metrics = MetricCollection(
        {
            name: MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            for name, k in (("top1", 1), ("top5", 5))
        }
    ).to(device)
    was_training = model.training
    model.eval()
    for batch in batches:
        metrics.update(model(batch.images).float(), batch.labels)
    model.train(was_training)
    # torchmetrics divides in float32; what follows its precision is no digit of the result.
    return {name: round(100 * float(value), 4) for name, value in metrics.compute().items()}
