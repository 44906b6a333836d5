"""The attention-based fusion of knowledge review (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.losses._maps import check_levels, describe


class ReviewKDFusion(nn.Module):
    """Turns the student's list of maps into one shaped like the teacher's, for ``hcl_loss``.

    It goes from the deepest level to the shallowest. Each level's map is brought to ``mid_channels``; with it, weighed
    by attention position for position, is mixed what the next deeper level made, enlarged to this level's size; the
    mixture goes on to the next shallower level and, brought to the teacher's channels, into the result. So a student's
    shallow level learns from its own map and all deeper ones.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.

    Args:
        in_channels: the channels of the student's maps, largest map first.
        out_channels: the channels of the teacher's, as many.
        mid_channels: the channels in which the levels are mixed; the paper takes 256 in detection.

    Raises:
        ValueError: no levels, not as many on both sides, or a number of channels below 1.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: Sequence[int], mid_channels: int) -> None:
        super().__init__()
        if len(in_channels) != len(out_channels) or not in_channels:
            raise ValueError(
                "student and teacher need one or more levels, and as many on both sides; "
                f"got channels {list(in_channels)} and {list(out_channels)} (teacher)."
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
            ValueError: maps that are not these.
        """
        self._check(student_maps)
        fused: Tensor | None = None
        results: list[Tensor] = []
        for block, feature_map in zip(reversed(self.blocks), reversed(student_maps), strict=True):
            fused, result = block(feature_map, fused)
            results.append(result)
        return results[::-1]

    def _check(self, maps: Sequence[Tensor]) -> None:
        check_levels("student", maps)
        if tuple(m.shape[1] for m in maps) != self.in_channels or len({m.shape[0] for m in maps}) > 1:
            raise ValueError(
                f"the fusion was built for maps of one batch with {list(self.in_channels)} channels, "
                f"to be like the teacher's {list(self.out_channels)}; got {describe(maps)}."
            )
        for larger, smaller in pairwise(maps):
            if smaller.shape[2] > larger.shape[2] or smaller.shape[3] > larger.shape[3]:
                raise ValueError(f"the student's maps must come largest first; got {describe(maps)}.")


class FusionBlock(nn.Module):
    """One level of :class:`ReviewKDFusion`. With ``fuses`` False, as for the deepest, it has nothing to mix in."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, mid_channels, 1, bias=False), SafeBatchNorm2d(mid_channels))
        self.attention = nn.Conv2d(2 * mid_channels, 2, 1) if fuses else None
        self.expand = nn.Sequential(
            nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False), SafeBatchNorm2d(out_channels)
        )

    def forward(self, feature_map: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns what goes on to the shallower level (B, mid_channels, H, W), and the result (B, out_channels, H, W).

        ``deeper`` (B, mid_channels, any size) is what came from the level below, None for the deepest.
        """
        own = self.reduce(feature_map)
        if self.attention is not None and deeper is not None:
            own = self._mix(own, deeper, self.attention)
        return own, self.expand(own)

    @staticmethod
    def _mix(own: Tensor, deeper: Tensor, attention: nn.Conv2d) -> Tensor:
        """Each position's own and the deeper map's nearest value, weighed by ``attention`` on the two concatenated."""
        size = own.shape[2:]
        # A 1 × 1 convolution of a concatenation is the sum of two, and commutes with enlarging: nothing is
        # concatenated, and the deeper map is convolved where it is still small.
        own_weight, deeper_weight = attention.weight.chunk(2, dim=1)
        scores = F.conv2d(own, own_weight, attention.bias)
        scores = scores + F.interpolate(F.conv2d(deeper, deeper_weight), size=size, mode="nearest")
        keep, take = scores.sigmoid().chunk(2, dim=1)
        return own * keep + F.interpolate(deeper, size=size, mode="nearest") * take


class SafeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that takes an empty batch, and one value a channel (a 1 × 1 map of one image), in training too.

    Those have no variance. They are normalised by the running statistics, as in evaluation, and leave these as they
    are.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.numel() > input.shape[1]:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
