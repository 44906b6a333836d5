"""MobileNetV1 on ImageNet (Howard et al. 2017, table 1), with ReLU.

Parameter names and activations are those of the network that the published ImageNet students are (Zhao et al. 2022;
Tian et al. 2020 and Chen et al. 2021 before them). timm's ``mobilenetv1_100`` has ReLU6 instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from torch import Tensor, nn

from classification.models.layers import Stem
from classification.models.protocol import ConvNet

STEM_CHANNELS = 32
# Channels and stride of each depthwise separable convolution.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
SHOWN = (3, 5, 11, 13)  # the last layer of each map size from a quarter of the image's: these are the stages


class MobileNetV1(ConvNet):
    """Stages: the outputs at strides 4, 8, 16 and 32, after ReLU. The last is the map.

    The network is ImageNet's with every stem.
    """

    reduction = 32

    def __init__(self, num_classes: int, stem: Stem) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Sequential(*_activated(3, STEM_CHANNELS, 3, 2)))
        channels = STEM_CHANNELS
        for width, stride in BLOCKS:
            depthwise = _activated(channels, channels, 3, stride, groups=channels)
            pointwise = list(_activated(channels, width, 1))
            pointwise[-1] = nn.ReLU()  # not in place: the map before it is shown too
            self.model.append(nn.Sequential(*depthwise, *pointwise))
            channels = width
        self.fc = nn.Linear(channels, num_classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        stages, preactivations = [], []
        for i, layer in enumerate(self.model):
            *others, relu = cast(nn.Sequential, layer)
            for module in others:
                x = module(x)
            preactivation, x = x, relu(x)
            if i in SHOWN:
                stages.append(x)
                preactivations.append(preactivation)
        return stages, preactivations, x

    def norms_before_relu(self) -> list[nn.BatchNorm2d | None]:
        return [cast(nn.BatchNorm2d, cast(nn.Sequential, self.model[i])[-2]) for i in SHOWN]


def _activated(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> Iterator[nn.Module]:
    yield nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    yield nn.BatchNorm2d(channels)
    yield nn.ReLU(inplace=True)


NETWORKS: dict[str, Callable[[int, Stem], ConvNet]] = {"MobileNetV1": MobileNetV1}
