"""The published CIFAR-100 networks: their parameters' names and shapes, and logits that their own code gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

FACTS = json.loads((Path(__file__).parents[1] / "published_cifar_checkpoints.json").read_text())
MODELS = FACTS["models"]


def fill(model: nn.Module) -> nn.Module:
    """Float64 weights and statistics from NumPy's frozen generator, in the order of the state dict; evaluation mode."""
    generator = np.random.RandomState(0)
    model.double().eval()
    for key, value in model.state_dict().items():
        noise = torch.from_numpy(np.asarray(generator.standard_normal(tuple(value.shape))))
        if value.ndim > 1:
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
        elif key.endswith("running_var") or key.endswith("weight"):
            value.copy_(1 + 0.5 * noise.tanh())
        elif value.ndim == 1:
            value.copy_(0.1 * noise)
    return model


def images() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(1).standard_normal((2, 3, 32, 32)))
