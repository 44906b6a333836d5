"""Layers that several families share, and the stems.

The stem is the first layers: "cifar" for small images, "large" and "cub" for large ones. The rest of a network is the
same as for CIFAR, and parameters keep their names.

- "large" is ResNet's: a 7x7 convolution with stride 2, then a 3x3 max-pooling with stride 2. At 224 pixels the first
  stage gets a map of 56x56. VGG, which pools between its stages anyway, takes only the convolution and a fourth pooling
  (see vgg.py).
- "cub" is that of the code of Wei et al. 2024 for CUB-200: a 7x7 convolution with stride 2 and no max-pooling. VGG's
  stem is that of CIFAR, and MobileNetV2, whose first convolution has a stride anyway, has a 2x2 max-pooling after it.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

Stem = Literal["cifar", "large", "cub"]
STEMS = ("cifar", "large", "cub")
# The size of the images divided by that of the first stage's map.
STEM_REDUCTION: dict[Stem, int] = {"cifar": 1, "cub": 2, "large": 4}


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the map's size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of ``groups`` groups (ShuffleNet). (B, D, H, W) to the same shape."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def initialise(model: nn.Module, linear_std: float | None = None) -> None:
    """Initialises convolutions as He et al. do (normal, fan out), their biases with zero.

    ``linear_std`` is the standard deviation of the linear layers' weights; their biases become zero. None leaves
    torch's initialisation of them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)


class ResidualBlock(nn.Module):
    """``relu(branch(x) + shortcut(x))`` (He et al. 2016): convolutions ``conv1``, ``conv2`` ... with ``bn1``, ``bn2``.

    Args:
        channels: of the input, then of each convolution's output.
        kernels: kernel size of each convolution.
        stride: stride of the first 3x3 convolution and of the projection.
        shortcut: attribute name of the 1x1 projection, which exists only where the shape changes.
    """

    def __init__(self, channels: list[int], kernels: list[int], stride: int, shortcut: str) -> None:
        super().__init__()
        self.convolutions = len(kernels)
        for i, kernel in enumerate(kernels):
            strided = i == kernels.index(3)
            self.add_module(f"conv{i + 1}", conv(channels[i], channels[i + 1], kernel, stride if strided else 1))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(channels[i + 1]))
        self.projection = ""
        if stride != 1 or channels[0] != channels[-1]:
            self.projection = shortcut
            convolution = conv(channels[0], channels[-1], 1, stride)
            self.add_module(shortcut, nn.Sequential(convolution, nn.BatchNorm2d(channels[-1])))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The last batch normalisation of the branch."""
        norm: nn.BatchNorm2d = getattr(self, f"bn{self.convolutions}")
        return norm

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.before_relu(x), inplace=True)

    def before_relu(self, x: Tensor) -> Tensor:
        """The output before its ReLU."""
        y = x
        for i in range(1, self.convolutions + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.convolutions:
                y = F.relu(y, inplace=True)
        y += getattr(self, self.projection)(x) if self.projection else x
        return y


def stage_outputs(x: Tensor, *layers: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The map of each stage, and that map before the stage's last ReLU. Each stage is applied to the output of the one
    before it, the first to ``x``. The last block of a stage must have ``before_relu``.
    """
    stages, preactivations = [], []
    for layer in layers:
        x, preactivation = _run_blocks(cast(nn.Sequential, layer), x)
        stages.append(x)
        preactivations.append(preactivation)
    return stages, preactivations


def _run_blocks(blocks: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    *others, last = blocks
    for block in others:
        x = block(x)
    preactivation: Tensor = cast(Any, last).before_relu(x)
    return F.relu(preactivation), preactivation


def stem_conv(stem: Stem, out_channels: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """The first convolution. ``kernel`` and ``stride`` are those of the CIFAR network."""
    if stem != "cifar":
        kernel, stride = 7, 2
    return nn.Conv2d(3, out_channels, kernel, stride, padding=kernel // 2, bias=bias)


def stem_pool(stem: Stem) -> nn.Module:
    """The pooling after the first convolution and its activation: only "large" has one."""
    return nn.MaxPool2d(3, stride=2, padding=1) if stem == "large" else nn.Identity()
