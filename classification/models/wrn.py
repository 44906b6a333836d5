"""Wide residual networks (Zagoruyko and Komodakis 2016): three stages of pre-activation units without dropout.

Parameter names are those of the published CIFAR-100 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.layers import STEM_REDUCTION, Stem, conv, initialise, stem_conv, stem_pool
from classification.models.protocol import ConvNet


class PreActivationUnit(nn.Module):
    """BN, ReLU and convolution twice, plus the input. Where the width changes, the sum takes a 1x1 projection of the
    activated input instead."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.convShortcut = conv(in_channels, channels, 1, stride) if in_channels != channels else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the unit's output, its activated input, and that input before the ReLU."""
        normalized = self.bn1(x)
        activated = F.relu(normalized)
        y = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        y = self.conv2(y)
        return y + (x if self.convShortcut is None else self.convShortcut(activated)), activated, normalized


class Stage(nn.Module):
    """Units in a row. The first one has the stride."""

    def __init__(self, in_channels: int, channels: int, units: int, stride: int) -> None:
        super().__init__()
        first = PreActivationUnit(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(PreActivationUnit(channels, channels, 1) for _ in range(units - 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the stage's output, its activated input, and that input before the ReLU."""
        x, activated_input, normalized_input = self.layer[0](x)
        for unit in self.layer[1:]:
            x, _, _ = unit(x)
        return x, activated_input, normalized_input


class WideResNet(ConvNet):
    """Stages: the outputs of ``block1`` to ``block3`` after the BN and ReLU that follow. The last is the map.

    The next stage begins with that BN and ReLU, so that nothing is computed twice.
    """

    def __init__(self, num_classes: int, stem: Stem, *, depth: int, widen_factor: int) -> None:
        super().__init__()
        self.reduction = 4 * STEM_REDUCTION[stem]
        units = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = stem_conv(stem, widths[0])
        self.maxpool = stem_pool(stem)
        self.block1 = Stage(widths[0], widths[1], units, stride=1)
        self.block2 = Stage(widths[1], widths[2], units, stride=2)
        self.block3 = Stage(widths[2], widths[3], units, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        x, _, _ = self.block1(self.maxpool(self.conv1(x)))
        x, first, before_first = self.block2(x)
        x, second, before_second = self.block3(x)
        before_last = self.bn1(x)
        last = F.relu(before_last)
        return [first, second, last], [before_first, before_second, before_last], last

    def norms_before_relu(self) -> list[nn.BatchNorm2d | None]:
        return [*(cast(PreActivationUnit, stage.layer[0]).bn1 for stage in (self.block2, self.block3)), self.bn1]


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {
    f"wrn_{depth}_{factor}": partial(WideResNet, depth=depth, widen_factor=factor)
    for depth, factor in ((16, 1), (16, 2), (16, 4), (28, 2), (28, 4), (40, 1), (40, 2))
}
