"""The attention-based fusion of knowledge review (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.losses._checks import check_maps, describe


class ReviewKDFusion(nn.Module):
    """Turns the student's list of maps into one shaped like the teacher's, for ``hcl_loss``.

    It goes from the deepest level to the shallowest. Each level's map is projected to ``mid_channels`` and blended,
    by per-pixel attention, with the upsampled output of the next deeper level. The blend is passed on to the next
    shallower level, and a convolution turns it into this level's result, with the teacher's channels. So each of the
    student's levels learns from its own map and from all deeper ones.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.

    Args:
        in_channels: the channels of the student's maps, from the largest map to the smallest.
        out_channels: the channels of the teacher's maps, one for each of the student's.
        mid_channels: the channels in which the levels are blended; the paper takes 256 in detection.

    Raises:
        ValueError: no levels, different numbers of levels, or a number of channels below 1.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: Sequence[int], mid_channels: int) -> None:
        super().__init__()
        if len(in_channels) != len(out_channels) or not in_channels:
            raise ValueError(
                "in_channels and out_channels must have one entry for each level, and one level or more; "
                f"got {list(in_channels)} and {list(out_channels)}."
            )
        if min(*in_channels, *out_channels, mid_channels) < 1:
            raise ValueError(
                "channels must be 1 or more; "
                f"got {list(in_channels)}, {list(out_channels)} (teacher) and mid_channels {mid_channels}."
            )
        self.in_channels = tuple(in_channels)
        self.out_channels = tuple(out_channels)
        deepest = len(in_channels) - 1
        self.blocks = nn.ModuleList(
            FusionBlock(inputs, outputs, mid_channels, fuses=level < deepest)
            for level, (inputs, outputs) in enumerate(zip(in_channels, out_channels, strict=True))
        )

    def forward(self, student_maps: Sequence[Tensor]) -> list[Tensor]:
        """
        Args:
            student_maps: (B, in_channels[l], H_l, W_l) for each level l, largest first; no level may be higher or
                wider than the one before.

        Returns:
            (B, out_channels[l], H_l, W_l) for each level l.

        Raises:
            ValueError: maps of other numbers, shapes or order.
        """
        self._check(student_maps)
        fused: Tensor | None = None
        results: list[Tensor] = []
        for block, feature_map in zip(reversed(self.blocks), reversed(student_maps), strict=True):
            fused, result = block(feature_map, fused)
            results.append(result)
        return results[::-1]

    def _check(self, maps: Sequence[Tensor]) -> None:
        check_maps("student_maps", maps)
        if tuple(m.shape[1] for m in maps) != self.in_channels or len({m.shape[0] for m in maps}) > 1:
            raise ValueError(
                f"ReviewKDFusion was built for maps of one batch with {list(self.in_channels)} channels, for teacher "
                f"maps with {list(self.out_channels)}; got {describe(maps)}."
            )
        for larger, smaller in pairwise(maps):
            if smaller.shape[2] > larger.shape[2] or smaller.shape[3] > larger.shape[3]:
                raise ValueError(f"student_maps must be listed largest first; got {describe(maps)}.")


class FusionBlock(nn.Module):
    """One level of :class:`ReviewKDFusion`. ``fuses`` is False for the deepest level, which has nothing to blend."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, mid_channels, 1, bias=False), SafeBatchNorm2d(mid_channels))
        self.attention = nn.Conv2d(2 * mid_channels, 2, 1) if fuses else None
        self.expand = nn.Sequential(
            nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False), SafeBatchNorm2d(out_channels)
        )

    def forward(self, feature_map: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The blend for the next shallower level (B, mid_channels, H, W), and the result (B, out_channels, H, W).

        ``deeper`` is the next deeper level's blend (B, mid_channels, any size), None for the deepest level.
        """
        own = self.reduce(feature_map)
        if self.attention is not None and deeper is not None:
            own = self._blend(own, deeper, self.attention)
        return own, self.expand(own)

    @staticmethod
    def _blend(own: Tensor, deeper: Tensor, attention: nn.Conv2d) -> Tensor:
        """The sum of ``own`` and the upsampled ``deeper``, each times its weight at every pixel.

        The weights are the sigmoid of ``attention`` on the two concatenated.
        """
        size = own.shape[2:]
        # A 1 × 1 convolution of a concatenation is the sum of two convolutions, and commutes with nearest upsampling.
        # So nothing is concatenated, and the deeper map is convolved while it is small.
        own_weight, deeper_weight = attention.weight.chunk(2, dim=1)
        scores = F.conv2d(own, own_weight, attention.bias)
        scores = scores + F.interpolate(F.conv2d(deeper, deeper_weight), size=size, mode="nearest")
        keep, take = scores.sigmoid().chunk(2, dim=1)
        return own * keep + F.interpolate(deeper, size=size, mode="nearest") * take


class SafeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that also accepts, in training, an empty batch and one value per channel (a 1 × 1 map of one image).

    These have no variance. They are normalised by the running statistics, as in evaluation, and do not change them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.numel() > input.shape[1]:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
