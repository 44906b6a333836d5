"""ResNets on CIFAR. Parameter names are those of the published CIFAR-100 checkpoints.

``CifarResNet`` has 6n + 2 layers in three stages of basic blocks (He et al. 2016, section 4.2). "8x4" and "32x4" have
four times the width from the first stage on, and twice the width in the stem. ``ResNet`` is ImageNet's ResNet-18 and
ResNet-50 (the same paper, table 1): four stages behind a 3x3 stem of stride 1. Shortcuts that change the shape are 1x1
projections.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.layers import (
    STEM_REDUCTION,
    ResidualBlock,
    Stem,
    initialise,
    stage_outputs,
    stem_conv,
    stem_pool,
)
from classification.models.protocol import ConvNet

WIDTHS = (64, 128, 256, 512)  # of ResNet's stages


class CifarResNet(ConvNet):
    """Stages: the outputs of ``layer1`` to ``layer3``, after their last ReLU. The last is the map.

    ``widths`` are the channels of the stem and of the three stages.
    """

    def __init__(self, num_classes: int, stem: Stem, *, depth: int, widths: tuple[int, ...] = (16, 16, 32, 64)) -> None:
        super().__init__()
        self.reduction = 4 * STEM_REDUCTION[stem]
        self.conv1 = stem_conv(stem, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = stem_pool(stem)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise(self)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages, preactivations = stage_outputs(x, self.layer1, self.layer2, self.layer3)
        return stages, preactivations, stages[-1]

    def norms_before_relu(self) -> list[nn.BatchNorm2d | None]:
        return [cast(ResidualBlock, layer[-1]).last_norm for layer in (self.layer1, self.layer2, self.layer3)]


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    inputs = [in_channels] + [channels] * (blocks - 1)
    strides = [stride] + [1] * (blocks - 1)
    return nn.Sequential(
        *(ResidualBlock([i, channels, channels], [3, 3], s, "downsample") for i, s in zip(inputs, strides, strict=True))
    )


class ResNet(ConvNet):
    """Stages: the outputs of ``layer1`` to ``layer4``, after their last ReLU. The last is the map.

    ``blocks`` is the number of blocks in each stage. A bottleneck block is a 1x1, a strided 3x3 and a 1x1 convolution,
    the last with four times the channels.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, num_classes: int, stem: Stem, *, blocks: tuple[int, ...], bottleneck: bool) -> None:
        super().__init__()
        self.reduction = 8 * STEM_REDUCTION[stem]
        self.conv1 = stem_conv(stem, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.maxpool = stem_pool(stem)
        channels = WIDTHS[0]
        for i, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True)):
            layer = nn.Sequential()
            for j in range(count):
                layer.append(_block(channels, width, 2 if i > 0 and j == 0 else 1, bottleneck))
                channels = 4 * width if bottleneck else width
            self.add_module(f"layer{i + 1}", layer)
        self.linear = nn.Linear(channels, num_classes)
        initialise(self)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages, preactivations = stage_outputs(x, self.layer1, self.layer2, self.layer3, self.layer4)
        return stages, preactivations, stages[-1]

    def norms_before_relu(self) -> list[nn.BatchNorm2d | None]:
        layers = self.layer1, self.layer2, self.layer3, self.layer4
        return [cast(ResidualBlock, layer[-1]).last_norm for layer in layers]


def _block(in_channels: int, width: int, stride: int, bottleneck: bool) -> ResidualBlock:
    if bottleneck:
        return ResidualBlock([in_channels, width, width, 4 * width], [1, 3, 1], stride, "shortcut")
    return ResidualBlock([in_channels, width, width], [3, 3], stride, "shortcut")


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(CifarResNet, depth=depth, widths=(32, 64, 128, 256)) for depth in (8, 32)},
    "ResNet18": partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "ResNet50": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
}
