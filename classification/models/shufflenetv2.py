"""ShuffleNet V2 1x on CIFAR (Ma et al. 2018, table 5), its stem a 1x1 convolution.

Parameter names are those of the published CIFAR-100 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.layers import channel_shuffle, conv
from classification.models.protocol import ConvNet
from classification.models.stem import Stem, stem_conv, stem_pool

STEM_CHANNELS, LAST_CHANNELS = 24, 1024
STAGES = ((116, 3), (232, 7), (464, 3))  # channels, units after the one that strides


class Unit(nn.Module):
    """Figure 3c: half of the channels pass, the others go through 1x1, 3x3 depthwise, 1x1; then a shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, y = x.chunk(2, dim=1)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.bn2(self.conv2(y))
        y = F.relu(self.bn3(self.conv3(y)), inplace=True)
        return channel_shuffle(torch.cat([kept, y], 1), 2)


class DownUnit(nn.Module):
    """Figure 3d: both branches see all channels and stride; then a shuffle."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(in_channels, in_channels, 3, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(ConvNet):
    """Stages: the outputs of ``layer1`` to ``layer3``, after their last ReLU.

    The map is that of the last 1x1 convolution, after ReLU: the layer that pooling and classifier follow.
    """

    def __init__(self, num_classes: int, stem: Stem) -> None:
        super().__init__()
        self.reduction = 8 if stem == "cifar" else 32
        self.conv1 = stem_conv(stem, STEM_CHANNELS, kernel=1)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.maxpool = stem_pool(stem)
        in_channels = STEM_CHANNELS
        for i, (channels, units) in enumerate(STAGES):
            layer = nn.Sequential(DownUnit(in_channels, channels), *(Unit(channels) for _ in range(units)))
            self.add_module(f"layer{i + 1}", layer)
            in_channels = channels
        self.conv2 = conv(in_channels, LAST_CHANNELS, 1)
        self.bn2 = nn.BatchNorm2d(LAST_CHANNELS)
        self.linear = nn.Linear(LAST_CHANNELS, num_classes)

    @property
    def classifier(self) -> nn.Linear:  # type: ignore[override]
        return self.linear

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            stages.append(x)
        return stages, F.relu(self.bn2(self.conv2(x)), inplace=True)


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {"ShuffleV2": ShuffleNetV2}
