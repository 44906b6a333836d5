"""ResNet for CIFAR: 6n + 2 layers in three stages of basic blocks (He et al. 2016, section 4.2).

"8x4" and "32x4" have four times the width from the first stage on, and twice in the stem. Shortcuts that change shape
are 1x1 projections. Parameter names are those of the published CIFAR-100 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.layers import ResidualBlock, initialise
from classification.models.protocol import ConvNet
from classification.models.stem import Stem, stem_conv, stem_pool


class CifarResNet(ConvNet):
    """Stages: the outputs of ``layer1`` to ``layer3``, after their last ReLU. The last is the map.

    ``widths`` are the channels of the stem and of the three stages.
    """

    def __init__(self, num_classes: int, stem: Stem, *, depth: int, widths: tuple[int, ...] = (16, 16, 32, 64)) -> None:
        super().__init__()
        self.reduction = 4 if stem == "cifar" else 16
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
    def classifier(self) -> nn.Linear:  # type: ignore[override]
        return self.fc

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            stages.append(x)
        return stages, x


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    inputs = [in_channels] + [channels] * (blocks - 1)
    strides = [stride] + [1] * (blocks - 1)
    return nn.Sequential(
        *(ResidualBlock([i, channels, channels], [3, 3], s, "downsample") for i, s in zip(inputs, strides, strict=True))
    )


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(CifarResNet, depth=depth, widths=(32, 64, 128, 256)) for depth in (8, 32)},
}
