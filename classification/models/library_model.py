"""A model of a library behind our protocol, with the library's own state dict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from classification.models.outputs import ModelOutput
from classification.models.protocol import ClassificationModel

# Relative, of the largest value: above the rounding of an average, below what a BN that has seen nothing scales (5e-6).
SAME = 2e-6


class LibraryModel(ClassificationModel):
    """Holds the library's model as ``model``. Keys of the state dict are the library's, without that prefix."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:  # type: ignore[override]
        """The library's model's."""
        return self.model.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called before the children's turn, on a dict of our own: gives the keys the prefix that the child looks for.
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}model.{key[len(prefix) :]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def pools_linearly(model: nn.Module, image: Tensor) -> bool:
    """Whether the classifier's input is the map's average, as seen on ``image`` (1, 3, H, W) with dropout on."""
    with probing(model, training=True):
        output: ModelOutput = model(image, return_features=True)
    average = output.map.mean((2, 3))
    return average.shape == output.pooled.shape and is_close(average, output.pooled)


def is_close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= SAME * b.abs().max())


@contextmanager
def probing(model: nn.Module, training: bool = False) -> Iterator[None]:
    """For a look at ``model``: without gradients; batch statistics, modes and random numbers stay as they are.

    ``training`` puts all but normalisation in training mode.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def probe_image(size: int) -> Tensor:
    """One image of noise (1, 3, size, size), always the same."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
