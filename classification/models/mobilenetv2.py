"""MobileNetV2 of half width on CIFAR (Sandler et al. 2018, table 2), with ReLU activations and a stem of stride 2.

Parameter names are those of the published CIFAR-100 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from classification.models.layers import Stem, conv, initialise, stem_conv, stem_pool
from classification.models.protocol import ConvNet

# Each stage's expansion, channels (at half width), number of blocks and stride.
STAGES = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
STEM_CHANNELS, LAST_CHANNELS = 16, 1280
# The last stage of each map size: these maps are in `ModelOutput.stages`.
SHOWN = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a 3x3 depthwise and a linear 1x1 convolution, plus the input where the shape stays the same."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == channels
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            conv(in_channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv(hidden, hidden, 3, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv(hidden, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(ConvNet):
    """Stages: the last block of each of the four map sizes. Their outputs have no ReLU: bottlenecks are linear.

    The map is the output of the last 1x1 convolution after its ReLU, which pooling and classifier follow.
    """

    def __init__(self, num_classes: int, stem: Stem) -> None:
        super().__init__()
        self.reduction = 16 if stem == "cifar" else 32
        first = stem_conv(stem, STEM_CHANNELS, stride=2)
        self.conv1 = nn.Sequential(first, nn.BatchNorm2d(STEM_CHANNELS), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(2) if stem == "cub" else stem_pool(stem)
        self.blocks = nn.ModuleList()
        channels = STEM_CHANNELS
        for expansion, width, count, stride in STAGES:
            stage = nn.Sequential()
            for i in range(count):
                stage.append(InvertedResidual(channels, width, stride if i == 0 else 1, expansion))
                channels = width
            self.blocks.append(stage)
        last = conv(channels, LAST_CHANNELS, 1)
        self.conv2 = nn.Sequential(last, nn.BatchNorm2d(LAST_CHANNELS), nn.ReLU(inplace=True))
        # The published name is "classifier.0", so the module "classifier" is a sequence of one layer. The property
        # ``classifier`` hides it and returns that layer.
        self._modules["classifier"] = nn.Sequential(nn.Linear(LAST_CHANNELS, num_classes))
        initialise(self, linear_std=0.01)

    @property
    def classifier(self) -> nn.Linear:
        return cast(nn.Linear, cast(nn.Sequential, self._modules["classifier"])[0])

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        x = self.maxpool(self.conv1(x))
        stages = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in SHOWN:
                stages.append(x)
        return stages, stages, self.conv2(x)

    def norms_before_relu(self) -> list[nn.BatchNorm2d | None]:
        ends = [cast(InvertedResidual, cast(nn.Sequential, self.blocks[i])[-1]) for i in SHOWN]
        return [cast(nn.BatchNorm2d, end.conv[-1]) for end in ends]


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {"MobileNetV2": MobileNetV2}
