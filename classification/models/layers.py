"""Layers that several families share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the map's size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deals the channels of ``groups`` groups out in turn (ShuffleNet). (B, D, H, W) to the same shape."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def initialise(model: nn.Module, linear_std: float | None = None) -> None:
    """He et al.'s normal initialisation (fan out) of convolutions, biases zero.

    ``linear_std``: standard deviation of the linear layers' weights, whose biases become zero; None leaves torch's.
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
        kernels: of each convolution.
        stride: of the first 3x3 convolution and of the projection.
        shortcut: attribute name of the 1x1 projection, which is there only where the shape changes.
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

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.convolutions + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.convolutions:
                y = F.relu(y, inplace=True)
        y += getattr(self, self.projection)(x) if self.projection else x
        return F.relu(y, inplace=True)
