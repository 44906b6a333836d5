"""ImageNet's ResNet-18 and ResNet-50 on CIFAR (He et al. 2016, table 1): four stages behind a 3x3 stem of stride 1.

Parameter names are those of the published CIFAR-100 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.layers import ResidualBlock, initialise
from classification.models.protocol import ConvNet
from classification.models.stem import Stem, stem_conv, stem_pool

WIDTHS = (64, 128, 256, 512)


class ResNet(ConvNet):
    """Stages: the outputs of ``layer1`` to ``layer4``, after their last ReLU. The last is the map.

    ``blocks`` counts each stage's; a bottleneck is 1x1, 3x3 (which strides), 1x1 with four times the channels.
    """

    def __init__(self, num_classes: int, stem: Stem, *, blocks: tuple[int, ...], bottleneck: bool) -> None:
        super().__init__()
        self.reduction = 8 if stem == "cifar" else 32
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
    def classifier(self) -> nn.Linear:  # type: ignore[override]
        return self.linear

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages, x


def _block(in_channels: int, width: int, stride: int, bottleneck: bool) -> ResidualBlock:
    if bottleneck:
        return ResidualBlock([in_channels, width, width, 4 * width], [1, 3, 1], stride, "shortcut")
    return ResidualBlock([in_channels, width, width], [3, 3], stride, "shortcut")


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {
    "ResNet18": partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "ResNet50": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
}
