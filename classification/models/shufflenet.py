"""ShuffleNet V1 with three groups (Zhang et al. 2018, table 1) and V2 1x (Ma et al. 2018, table 5) on CIFAR.

The stem is a 1x1 convolution. Parameter names are those of the published CIFAR-100 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.layers import (
    STEM_REDUCTION,
    Stem,
    channel_shuffle,
    conv,
    stage_outputs,
    stem_conv,
    stem_pool,
)
from classification.models.protocol import ConvNet

STEM_CHANNELS = 24
GROUPS = 3  # of V1
STAGES_V1 = ((240, 4), (480, 8), (960, 4))  # channels, units
STAGES_V2 = ((116, 3), (232, 7), (464, 3))  # channels, units after the strided one
LAST_CHANNELS = 1024  # of V2


class UnitV1(nn.Module):
    """V1, figure 2: a grouped 1x1, a shuffle, a 3x3 depthwise and a grouped 1x1 convolution, plus the input.

    At stride 2 the input is average-pooled and concatenated instead. The first 1x1 of the first unit is not grouped.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, first_groups: int) -> None:
        super().__init__()
        self.stride, self.first_groups = stride, first_groups
        branch = channels - in_channels if stride == 2 else channels
        middle = branch // 4
        self.conv1 = conv(in_channels, middle, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(middle)
        # The paper has no ReLU between the depthwise and the last convolution; the published networks have one.
        self.conv2 = conv(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv(middle, branch, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.before_relu(x), inplace=True)

    def before_relu(self, x: Tensor) -> Tensor:
        """The output before its ReLU."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(channel_shuffle(y, self.first_groups))), inplace=True)
        y = self.bn3(self.conv3(y))
        return y + x if self.stride == 1 else torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)


class ShuffleNetV1(ConvNet):
    """Stages: the outputs of ``layer1`` to ``layer3``, after their last ReLU. The last is the map."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, num_classes: int, stem: Stem) -> None:
        super().__init__()
        self.reduction = 8 * STEM_REDUCTION[stem]
        self.conv1 = stem_conv(stem, STEM_CHANNELS, kernel=1)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.maxpool = stem_pool(stem)
        in_channels = STEM_CHANNELS
        for i, (channels, units) in enumerate(STAGES_V1):
            first = UnitV1(in_channels, channels, 2, first_groups=1 if i == 0 else GROUPS)
            others = (UnitV1(channels, channels, 1, GROUPS) for _ in range(units - 1))
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *others))
            in_channels = channels
        self.linear = nn.Linear(in_channels, num_classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages, preactivations = stage_outputs(x, self.layer1, self.layer2, self.layer3)
        return stages, preactivations, stages[-1]


class UnitV2(nn.Module):
    """V2, figure 3c: half of the channels pass, the others go through 1x1, 3x3 depthwise, 1x1; then a shuffle."""

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
        return channel_shuffle(torch.cat([kept, F.relu(self._branch(y), inplace=True)], 1), 2)

    def before_relu(self, x: Tensor) -> Tensor:
        """The output before the branch's ReLU. The half that passes has had its own."""
        kept, y = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat([kept, self._branch(y)], 1), 2)

    def _branch(self, y: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.bn2(self.conv2(y))
        return self.bn3(self.conv3(y))


class DownUnitV2(nn.Module):
    """V2, figure 3d: two strided branches over all channels, then a shuffle."""

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

    The map is the output of the last 1x1 convolution after its ReLU, which pooling and classifier follow.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, num_classes: int, stem: Stem) -> None:
        super().__init__()
        self.reduction = 8 * STEM_REDUCTION[stem]
        self.conv1 = stem_conv(stem, STEM_CHANNELS, kernel=1)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.maxpool = stem_pool(stem)
        in_channels = STEM_CHANNELS
        for i, (channels, units) in enumerate(STAGES_V2):
            layer = nn.Sequential(DownUnitV2(in_channels, channels), *(UnitV2(channels) for _ in range(units)))
            self.add_module(f"layer{i + 1}", layer)
            in_channels = channels
        self.conv2 = conv(in_channels, LAST_CHANNELS, 1)
        self.bn2 = nn.BatchNorm2d(LAST_CHANNELS)
        self.linear = nn.Linear(LAST_CHANNELS, num_classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages, preactivations = stage_outputs(x, self.layer1, self.layer2, self.layer3)
        return stages, preactivations, F.relu(self.bn2(self.conv2(stages[-1])), inplace=True)


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {"ShuffleV1": ShuffleNetV1, "ShuffleV2": ShuffleNetV2}
