"""VGG with batch normalisation (Simonyan and Zisserman 2015, table 1), global average pooling and one linear layer.

Parameter names are those of the published CIFAR-100 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from classification.models.layers import Stem, initialise, stem_conv
from classification.models.protocol import ConvNet

WIDTHS = (64, 128, 256, 512, 512)


class VGG(ConvNet):
    """Stages: the outputs of ``block1`` to ``block4`` after ReLU, before max-pooling. The last is the map.

    A 2x2 max-pooling lies between blocks, except between the last two on CIFAR, which have maps of the same size. With
    the large stem the first convolution is 7x7 with stride 2, and a pooling lies between the last two blocks too. With
    the CUB stem the network is that of CIFAR: at 224 pixels its map is 28x28.
    ``counts`` is the number of convolutions in each block.
    """

    def __init__(self, num_classes: int, stem: Stem, *, counts: tuple[int, ...]) -> None:
        super().__init__()
        self.reduction = 32 if stem == "large" else 8
        self.pools = (False, True, True, True, stem == "large")  # before each block
        first = stem_conv("cifar" if stem == "cub" else stem, WIDTHS[0], bias=True)
        in_channels = (3, *WIDTHS[:-1])
        blocks = [_block(i, width, count) for i, width, count in zip(in_channels, WIDTHS, counts, strict=True)]
        blocks[0][0] = first
        for i, block in enumerate(blocks):
            self.add_module(f"block{i}", block)
        self._modules["classifier"] = nn.Linear(WIDTHS[-1], num_classes)  # the published name; see the property
        initialise(self, linear_std=0.01)

    @property
    def classifier(self) -> nn.Linear:
        return cast(nn.Linear, self._modules["classifier"])

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        stages, preactivations = [], []
        for i, pools in enumerate(self.pools):
            if pools:
                x = F.max_pool2d(x, 2)
            preactivation = getattr(self, f"block{i}")(x)
            x = F.relu(preactivation)
            stages.append(x)
            preactivations.append(preactivation)
        return stages[1:], preactivations[1:], x

    def norms_before_relu(self) -> list[nn.BatchNorm2d | None]:
        return [getattr(self, f"block{i}")[-1] for i in range(1, len(self.pools))]


def _block(in_channels: int, width: int, count: int) -> nn.Sequential:
    """``count`` times a convolution and BN, with ReLU between them."""
    layers: list[nn.Module] = []
    for i in range(count):
        convolution = nn.Conv2d(in_channels if i == 0 else width, width, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {
    "vgg8": partial(VGG, counts=(1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, counts=(1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, counts=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, counts=(2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, counts=(2, 2, 4, 4, 4)),
}
