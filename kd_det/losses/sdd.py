"""Scale decoupled distillation: the logits of an image's regions, and the loss on them (Wei et al. 2024)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.losses._checks import check_labels, check_one_device, check_weight, gather_targets
from kd_det.losses.dkd import dkd_loss


def multi_scale_logits(
    feature_map: Tensor, classifier: nn.Linear, scales: Sequence[int] = (1, 2, 4), *, repeat: bool = False
) -> Tensor:
    """The logits of every region of a map: of the whole, of its 2 × 2 parts, and so on.

    A linear classifier commutes with average pooling. So the regions are pooled first, as there are mostly fewer
    regions than positions (21 and 49 for a 7 × 7 map), and then classified in one matrix product. Each scale is
    pooled from the map itself: region 0 is exactly what the model says about the image.

    Source: Wei, Luo, Luo, "Scale Decoupled Distillation", CVPR 2024, section 3.

    Args:
        feature_map: the map that the model averages before its classifier (B, D, H, W).
        classifier: the model's last layer, D features to C classes.
        scales: different whole numbers, the first of them 1, none larger than H or W. m stands for m × m regions by
            adaptive average pooling: where m does not divide the map's side, neighbouring regions overlap.
        repeat: whether scales may be larger than H or W. Adaptive pooling then repeats positions, so that regions are
            equal and count several times: with scales (1, 2, 4) each position of a 2 × 2 map counts five times, once
            for 2 and four times for 4. The published code does so for MobileNetV2 on CIFAR-100.

    Returns:
        (B, C, N) with N = Σ m², scale after scale and row after row, in the dtype of the classifier's output. Both the
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
    _check_scales(scales, None if repeat else min(feature_map.shape[2:]))
    pooled = [F.adaptive_avg_pool2d(feature_map, scale).flatten(2) for scale in scales]
    logits: Tensor = classifier(torch.cat(pooled, dim=2).transpose(1, 2))
    return logits.transpose(1, 2)


def _check_scales(scales: Sequence[int], side: int | None) -> None:
    whole = all(isinstance(scale, int) and not isinstance(scale, bool) and scale >= 1 for scale in scales)
    if not whole or not scales or scales[0] != 1 or len(set(scales)) < len(scales):
        raise ValueError(f"scales must be different whole numbers, the first of them 1; got {scales!r}.")
    if side is not None and max(scales) > side:
        raise ValueError(
            f"scales {scales!r}: the map's shorter side is {side}; leave out larger scales, or give repeat=True."
        )


def sdd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    base: Callable[..., Tensor] = dkd_loss,
    complementary_weight: float = 2.0,
    **base_settings: Any,
) -> Tensor:
    """1 / (B N) Σ_bn w_bn ℓ_bn: a loss on the logits of the whole and of each of its regions.

    ℓ_bn is ``base`` on region n of sample b, with the sample's label. The teacher is right about a region if its
    greatest logit there is the label's. w_bn is ``complementary_weight`` where the teacher is right about the region
    and wrong about the whole, or the reverse, and 1 otherwise. So it is always 1 for region 0, the whole.

    Source: Wei, Luo, Luo, "Scale Decoupled Distillation", CVPR 2024, section 3: D_con + β D_com, averaged over the
    regions. The paper takes β = 2. The plain formula: ``textbook.sdd``.

    Args:
        student_logits: (B, C, N), N >= 1 regions, the first of which is the whole, as ``multi_scale_logits`` returns
            them. The dtypes are those that ``base`` takes.
        teacher_logits: (B, C, N).
        labels: the target classes (B,), int64, from 0 to C − 1.
        base: a loss on logits (B·N, C), called as ``base(student_logits, teacher_logits, labels, reduction="none",
            **base_settings)``. If it needs no third argument beside those named, as ``kd_loss``, it is called without
            the labels. It returns (B·N,).
        complementary_weight: β, 0 or more.
        **base_settings: what else ``base`` takes, such as ``temperature``.

    Returns:
        A scalar in the dtype that ``base`` computes in; 0 with a graph for an empty batch.

    Raises:
        ValueError: a shape, device, label or setting other than these; ``reduction`` among the settings; or a ``base``
            that does not return (B·N,).
    """
    _check_regions(student_logits, teacher_logits)
    check_labels(labels, student_logits)
    check_weight("complementary_weight", complementary_weight)
    if "reduction" in base_settings:
        raise ValueError("sdd_loss itself averages over samples and regions; leave out reduction.")
    teacher_logits = teacher_logits.detach()
    rows = [_rows(student_logits), _rows(teacher_logits)]
    if _takes_labels(base, {"reduction", *base_settings}):
        rows.append(labels.repeat_interleave(student_logits.shape[2]))
    losses = base(*rows, reduction="none", **base_settings)
    if losses.shape != rows[0].shape[:1]:
        raise ValueError(
            f'base must return one loss for each row, ({len(rows[0])},), with reduction="none"; '
            f"got {tuple(losses.shape)}."
        )
    complementary = _complementary(teacher_logits, labels).flatten()
    weighted = torch.where(complementary, complementary_weight * losses, losses)
    return weighted.sum() / max(len(losses), 1)


def _check_regions(student_logits: Tensor, teacher_logits: Tensor) -> None:
    shape = student_logits.shape
    if shape != teacher_logits.shape or len(shape) != 3 or shape[1] < 2 or shape[2] < 1:
        raise ValueError(
            "student_logits and teacher_logits must both be (B, C, N) with C >= 2 and N >= 1; "
            f"got {tuple(shape)} and {tuple(teacher_logits.shape)}."
        )
    check_one_device("logits", student_logits, teacher_logits)


def _rows(logits: Tensor) -> Tensor:
    """(B, C, N) to (B·N, C), the regions of a sample together."""
    return logits.transpose(1, 2).flatten(0, 1)


def _takes_labels(base: Callable[..., Tensor], keywords: set[str]) -> bool:
    """Whether ``base`` needs a third argument by position, ``keywords`` being given by name, or takes any number."""
    kinds = inspect.Parameter
    parameters = inspect.signature(base).parameters.values()
    by_position = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in by_position if p.default is kinds.empty and p.name not in keywords]
    return len(needed) >= 3 or any(p.kind == kinds.VAR_POSITIONAL for p in parameters)


def _complementary(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """(B, N): whether the teacher is right about only one of the region and the whole."""
    # Raises for a label out of range, which a base without labels would not notice.
    gather_targets(teacher_logits[:, :, 0], labels.unsqueeze(1))
    right = teacher_logits.argmax(1) == labels.unsqueeze(1)
    return right != right[:, :1]
