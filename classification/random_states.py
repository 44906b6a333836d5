"""The states of the random number generators: Python's, NumPy's, PyTorch's, and those of the device.

They are saved as plain values and tensors, under the names that Accelerate gives them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

WORDS = 624  # of NumPy's generator, 32 bits each


def random_states(device: torch.device) -> dict[str, Any]:
    """This process's states; of ``device`` as well where it has generators of its own."""
    name, words, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "random_state": random.getstate(),
        "numpy_random_seed": (str(name), torch.from_numpy(words.astype(np.int64)), *rest),
        "torch_manual_seed": torch.get_rng_state(),
    }
    module = _device_module(device)
    if module is not None:
        states[_device_key(device)] = module.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Goes on from what ``random_states`` gave.

    Raises:
        ValueError, TypeError, RuntimeError, LookupError: they are no such states.
    """
    name, words, *rest = states["numpy_random_seed"]
    np.random.set_state((name, _words(words), *rest))
    random.setstate(states["random_state"])
    torch.set_rng_state(states["torch_manual_seed"])
    module = _device_module(device)
    if module is not None:
        module.set_rng_state_all(states[_device_key(device)])


def _device_module(device: torch.device) -> Any:
    module = None if device.type == "cpu" else torch.get_device_module(device)
    return module if hasattr(module, "get_rng_state_all") else None


def _device_key(device: torch.device) -> str:
    return f"torch_{device.type}_manual_seed"


def _words(saved: Any) -> np.ndarray:
    words = np.asarray(saved)  # a tensor; an array in states of earlier versions
    if words.shape != (WORDS,):
        raise ValueError(f"NumPy's state has the shape {words.shape}, not {(WORDS,)}")
    return words.astype(np.uint32)
