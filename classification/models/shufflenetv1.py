"""ShuffleNet V1 with three groups on CIFAR (Zhang et al. 2018, table 1), its stem a 1x1 convolution.

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

GROUPS = 3
STEM_CHANNELS = 24
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, units


class Unit(nn.Module):
    """Figure 2: grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; plus the input.

    At stride 2 the input is average-pooled and concatenated instead. The first unit's first 1x1 is not grouped.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, first_groups: int) -> None:
        super().__init__()
        self.stride, self.first_groups = stride, first_groups
        branch = channels - in_channels if stride == 2 else channels
        middle = branch // 4
        self.conv1 = conv(in_channels, middle, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(middle)
        # Another ReLU between the depthwise and the last convolution than in the paper: the published networks have it.
        self.conv2 = conv(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv(middle, branch, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(channel_shuffle(y, self.first_groups))), inplace=True)
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            return F.relu(y + x, inplace=True)
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], 1), inplace=True)


class ShuffleNetV1(ConvNet):
    """Stages: the outputs of ``layer1`` to ``layer3``, after their last ReLU. The last is the map."""

    def __init__(self, num_classes: int, stem: Stem) -> None:
        super().__init__()
        self.reduction = 8 if stem == "cifar" else 32
        self.conv1 = stem_conv(stem, STEM_CHANNELS, kernel=1)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.maxpool = stem_pool(stem)
        in_channels = STEM_CHANNELS
        for i, (channels, units) in enumerate(STAGES):
            first = Unit(in_channels, channels, 2, first_groups=1 if i == 0 else GROUPS)
            others = (Unit(channels, channels, 1, GROUPS) for _ in range(units - 1))
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *others))
            in_channels = channels
        self.linear = nn.Linear(in_channels, num_classes)

    @property
    def classifier(self) -> nn.Linear:  # type: ignore[override]
        return self.linear

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            stages.append(x)
        return stages, x


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {"ShuffleV1": ShuffleNetV1}
