"""The first layers, for small images ("cifar") and for large ones ("large").

"large" is ResNet's: a 7x7 convolution of stride 2, then a 3x3 max-pooling of stride 2, then the network as it is
for CIFAR; the parameters keep their names. At 224 the first stage sees 56x56. VGG, which pools between its stages
anyway, takes the convolution alone and its fourth pooling (see vgg.py).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

Stem = Literal["cifar", "large"]
STEMS = ("cifar", "large")


def stem_conv(stem: Stem, out_channels: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """The first convolution: ``kernel`` and ``stride`` are those of the CIFAR network."""
    if stem == "large":
        kernel, stride = 7, 2
    return nn.Conv2d(3, out_channels, kernel, stride, padding=kernel // 2, bias=bias)


def stem_pool(stem: Stem) -> nn.Module:
    """What follows the first convolution and its activation: nothing for CIFAR."""
    return nn.MaxPool2d(3, stride=2, padding=1) if stem == "large" else nn.Identity()
