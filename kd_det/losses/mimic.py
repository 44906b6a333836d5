"""Losses that imitate feature maps: SimKD (reused classifier), VID (variational), OFD (margins).

Shape legend: B images, C and E channels of the student's and of the teacher's map, H and W height and width of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.losses._checks import FLOATS, check_maps, check_one_device, describe, to_loss_dtype
from kd_det.losses.maps import pair_levels, pool_to_common_size
from kd_det.losses.review_fusion import SafeBatchNorm2d

# If a smaller share of a normal distribution is below 0, ofd_margin takes −3 standard deviations.
LEAST_NEGATIVE_SHARE = 0.001


class SimKDLoss(nn.Module):
    """The mean squared error between the student's projected map and the teacher's, whose classifier is reused.

    The projector is a 1 × 1 convolution to E / reduction channels, a 3 × 3 one, and a 1 × 1 one to E channels, each
    without bias and followed by batch normalisation and ReLU. If the maps differ in size, both are first brought to the
    smaller height and width by adaptive average pooling. The student has no classifier of its own: its logits are those
    of the teacher's classifier on the averaged projected map (``logits``). So it is trained with this loss alone,
    without a cross-entropy, and it needs the projector and the teacher's classifier for inference.

    Source: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022.
    Weight 1, cross-entropy 0.

    Args:
        student_channels: C, 1 or more.
        teacher_channels: E, 1 or more.
        reduction: the factor by which the middle of the projector is narrower than E; from 1 to E.

    Raises:
        ValueError: a setting other than these.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, reduction: int = 2) -> None:
        super().__init__()
        _check_channels(student_channels, teacher_channels)
        if not 1 <= reduction <= teacher_channels:
            raise ValueError(
                f"reduction must be from 1 to {teacher_channels}, the teacher's channels; got {reduction}."
            )
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        middle = teacher_channels // reduction
        self.projector = nn.Sequential(
            *_projection(student_channels, middle, 1),
            *_projection(middle, middle, 3),
            *_projection(middle, teacher_channels, 1),
        )

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """
        Args:
            student_map: the last map before pooling (B, C, H, W).
            teacher_map: the map that the teacher averages before its classifier, after its ReLU (B, E, H', W').

        Returns:
            A scalar; 0 with a graph for an empty batch. The projector follows autocast. Precision: see
            ``kd_det.losses``.

        Raises:
            ValueError: a shape, dtype or device other than these.
        """
        projected, target = _imitated(self, self.projector, student_map, teacher_map)
        return F.mse_loss(projected, target) if projected.numel() else projected.sum()

    def logits(self, student_map: Tensor, classifier: nn.Module, size: tuple[int, int]) -> Tensor:
        """The student's logits, by the teacher's ``classifier`` on (B, E).

        ``size`` is the height and width of the teacher's map, so that the projector sees maps of the size that it is
        trained on.
        """
        height, width = (min(sides) for sides in zip(student_map.shape[2:], size, strict=True))
        projected = self.projector(_resized(student_map, (height, width)))
        logits: Tensor = classifier(projected.mean((2, 3)))
        return logits


def _projection(inputs: int, outputs: int, side: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False),
        SafeBatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class VIDLoss(nn.Module):
    """The mean of ½ [(r − t)² / v + log v]: the student's map as the mean of a normal distribution of the teacher's.

    r (B, E, H, W) is the regressor of the student's map: three 1 × 1 convolutions without bias to E channels, with ReLU
    between them. The variance v of a channel is a learned parameter, softplus(a) + eps. This is the negative
    log-density of t, less a constant; it may be negative. If the maps differ in size, both are first brought to the
    smaller height and width by adaptive average pooling. The module is for one level; add the losses of several levels.

    Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019.
    Weight 1. In some published code the variances are not given to the optimiser and keep their initial value; here
    they are parameters of the module.

    Args:
        student_channels: C, 1 or more.
        teacher_channels: E, 1 or more.
        init_variance: v at the start, above eps.
        eps: the least v, above 0.

    Raises:
        ValueError: a setting other than these.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, *, init_variance: float = 5.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        _check_channels(student_channels, teacher_channels)
        if not 0 < eps < init_variance < math.inf:
            raise ValueError(
                f"init_variance and eps must be finite, 0 < eps < init_variance; got {init_variance!r} and {eps!r}."
            )
        self.student_channels, self.teacher_channels, self.eps = student_channels, teacher_channels, eps
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        # The inverse of softplus, stable for variances of any size.
        softplus = init_variance - eps
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), softplus + math.log(-math.expm1(-softplus))))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """
        Args:
            student_map: (B, C, H, W).
            teacher_map: (B, E, H', W').

        Returns:
            A scalar; 0 with a graph for an empty batch. The regressor follows autocast. Precision: see
            ``kd_det.losses``.

        Raises:
            ValueError: a shape, dtype or device other than these.
        """
        mean, target = _imitated(self, self.regressor, student_map, teacher_map)
        log_scale = self.log_scale.to(mean.dtype).view(1, -1, 1, 1)
        variance = torch.logaddexp(log_scale, torch.zeros_like(log_scale)) + self.eps
        losses = ((mean - target).square() / variance + variance.log()) / 2
        return losses.sum() / max(losses.numel(), 1)


def ofd_margin(bn_weight: Tensor, bn_bias: Tensor) -> Tensor:
    """The mean of the negative values of each channel after a batch normalisation: the margins of ``ofd_loss``.

    A channel is assumed to be normal, with mean m = bias and standard deviation s = |weight|. The margin is m − s
    φ(m/s) / Φ(−m/s), φ and Φ the density and the distribution function of the standard normal, and −3 s if the negative
    share Φ(−m/s) is less than a thousandth. With s = 0 it is min(m, 0).

    Source: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019.

    Args:
        bn_weight: the weight of the teacher's last batch normalisation before the ReLU (C,), floating-point.
        bn_bias: its bias (C,).

    Returns:
        (C,), 0 or less, float32 at least, without a graph.

    Raises:
        ValueError: a shape, dtype or device other than these.
    """
    if bn_weight.ndim != 1 or bn_weight.shape != bn_bias.shape:
        raise ValueError(
            f"bn_weight and bn_bias must both be (C,); got {tuple(bn_weight.shape)} and {tuple(bn_bias.shape)}."
        )
    if bn_weight.dtype not in FLOATS or bn_bias.dtype not in FLOATS or bn_weight.device != bn_bias.device:
        raise ValueError(
            "bn_weight and bn_bias must be floating-point numbers on one device; "
            f"got {bn_weight.dtype} on {bn_weight.device} and {bn_bias.dtype} on {bn_bias.device}."
        )
    mean, std = to_loss_dtype(bn_bias.detach(), bn_weight)
    std = std.abs()
    # For std = 0 the quotient is infinite or 0, and the result is still right.
    quotient = mean / std.clamp_min(torch.finfo(std.dtype).tiny)
    share = torch.special.ndtr(-quotient)
    density = (-quotient.square() / 2).exp() / math.sqrt(2 * math.pi)
    margin = mean - std * density / share.clamp_min(LEAST_NEGATIVE_SHARE)
    return torch.where(share <= LEAST_NEGATIVE_SHARE, -3 * std, margin)


def ofd_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    """Σ over n levels l = 0, 1, ... of Σ (s − t̂)² / B / 2^(n−1−l): overhaul of feature distillation.

    t̂ is the margin ReLU of the teacher's map, max(t, margin of the channel). Where t <= 0, a student's value of t̂ or
    less costs nothing (the partial L2 distance): the ReLU after it removes both. The teacher's map is brought to the
    student's size by adaptive average pooling.

    Source: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019. The weight
    is 0.001 on CIFAR-100. There the student's map goes through a 1 × 1 convolution and batch normalisation first. In
    some published code the teacher is in training mode; it must be in evaluation mode.

    Args:
        student_maps: one or more (B, C, H, W) before the ReLU, already adapted to the teacher's channels, first level
            first.
        teacher_maps: as many (B, C, H', W'), before the ReLU.
        margins: one (C,) for each level, 0 or less, as ``ofd_margin`` returns.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision: see ``kd_det.losses``.

    Raises:
        ValueError: no maps; maps that differ in number, batch, channels or device between the two sides; margins that
            do not fit.
    """
    levels = pair_levels(student_maps, teacher_maps)
    channels = [tuple(m.shape[1:2]) for m in teacher_maps]
    if [tuple(m.shape[1:2]) for m in student_maps] != channels:
        raise ValueError(
            "student_maps must have the teacher's channels, level by level; "
            f"got {describe(student_maps)} and {describe(teacher_maps)} (teacher). Adapt the student's channels first."
        )
    if [tuple(margin.shape) for margin in margins] != channels:
        raise ValueError(f"margins must be one (C,) for each level, {channels}; got {describe(margins)}.")
    errors = [_partial_distance(s, t, margin) for (s, t), margin in zip(levels, margins, strict=True)]
    weighted = [error / 2 ** (len(errors) - 1 - level) for level, error in enumerate(errors)]
    return torch.stack(weighted).sum() / max(len(student_maps[0]), 1)


def _partial_distance(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    t = _resized(t, (s.shape[2], s.shape[3]))
    target = torch.maximum(t, margin.detach().to(t).view(-1, 1, 1))
    return (s - target).masked_fill((t <= 0) & (s <= target), 0.0).square().sum()


def _resized(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    return feature_map if feature_map.shape[2:] == size else F.adaptive_avg_pool2d(feature_map, size)


def _check_channels(student_channels: int, teacher_channels: int) -> None:
    if min(student_channels, teacher_channels) < 1:
        raise ValueError(
            f"student_channels and teacher_channels must be 1 or more; got {student_channels} and {teacher_channels}."
        )


def _imitated(
    loss: SimKDLoss | VIDLoss, layers: nn.Sequential, student_map: Tensor, teacher_map: Tensor
) -> tuple[Tensor, Tensor]:
    """The output of ``layers`` for the student's map, and the detached teacher's map, in the same shape and dtype."""
    check_maps("student_map", [student_map])
    check_maps("teacher_map", [teacher_map])
    channels = student_map.shape[1], teacher_map.shape[1]
    if channels != (loss.student_channels, loss.teacher_channels) or len(student_map) != len(teacher_map):
        raise ValueError(
            f"{type(loss).__name__} was built for maps of {loss.student_channels} and {loss.teacher_channels} channels "
            f"(teacher), of the same images; got {tuple(student_map.shape)} and {tuple(teacher_map.shape)}."
        )
    check_one_device("map", student_map, teacher_map)
    wide, target = to_loss_dtype(student_map, teacher_map)
    pooled, target = pool_to_common_size(wide, target)
    result: Tensor = layers(pooled.to(next(layers.parameters()).dtype))
    return to_loss_dtype(result, target)
