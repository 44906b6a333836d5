"""What the adapters of timm's and torchvision's models share: the state dict, and looks at how a model classifies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn

from classification.models.protocol import ClassificationModel, ModelOutput

# Relative to the largest value: above the rounding error of an average, and below the factor by which a BatchNorm with
# initial statistics scales (5e-6).
SAME = 2e-6

D = TypeVar("D", bound=dict[str, Any])
RELUS = (nn.ReLU, nn.ReLU6)


class StageEnd(NamedTuple):
    """A stage's last ReLU, and the last batch normalisation before it."""

    relu: Any
    norm: nn.BatchNorm2d | None


class LibraryModel(ClassificationModel):
    """Holds the library's model as ``model``. The keys of the state dict are the library's, without that prefix."""

    model: Any  # the library's module, with methods of its own

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._ends: list[StageEnd | None] = []
        self._inputs: dict[nn.Module, Tensor] = {}

    def norms_before_relu(self) -> Sequence[nn.BatchNorm2d | None]:
        return [end and end.norm for end in self._ends]

    def find_stage_ends(self, image: Tensor) -> None:
        """Finds the ReLU and the batch normalisation with which each stage ends, by running ``image`` (1, 3, H, W).

        From then on ``take_preactivations`` has these ReLUs' inputs.
        """
        calls: list[tuple[nn.Module, nn.BatchNorm2d | None, Tensor]] = []
        norms: list[nn.BatchNorm2d] = []
        hooks = []
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                hooks.append(module.register_forward_pre_hook(lambda norm, _: norms.append(norm)))
            elif isinstance(module, RELUS):
                record = lambda relu, _, out: calls.append((relu, norms[-1] if norms else None, out))  # noqa: E731
                hooks.append(module.register_forward_hook(record))
        with probing(self):
            stages = self(image, return_features=True).stages
        for hook in hooks:
            hook.remove()
        for stage in stages:
            # The same memory: a module that wraps the ReLU may return a view of its output.
            ends = [StageEnd(relu, norm) for relu, norm, out in calls if out.data_ptr() == stage.data_ptr()]
            taken = [end.relu for end in self._ends if end]
            self._ends.append(ends[-1] if ends and ends[-1].relu not in taken else None)
        for end in filter(None, self._ends):
            end.relu.inplace = False
            end.relu.register_forward_pre_hook(self._keep)

    def _keep(self, relu: nn.Module, inputs: tuple[Tensor]) -> None:
        self._inputs[relu] = inputs[0]

    def take_preactivations(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """The stages before their last ReLU, from the forward pass that has just been made. They are kept no longer."""
        pairs = zip(self._ends or [None] * len(stages), stages, strict=True)
        found = [stage if end is None else self._inputs[end.relu] for end, stage in pairs]
        self._inputs.clear()
        return found

    @overload
    def state_dict(self, *, destination: D, prefix: str = ..., keep_vars: bool = ...) -> D: ...

    @overload
    def state_dict(self, *, prefix: str = ..., keep_vars: bool = ...) -> dict[str, Any]: ...

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The state dict of the library's model."""
        return self.model.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # PyTorch calls this before it loads the children, on a copy of the dict: add the prefix that the child expects.
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}model.{key[len(prefix) :]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def pools_linearly(model: nn.Module, image: Tensor) -> bool:
    """Whether the classifier's input is the map's average, for ``image`` (1, 3, H, W) and with dropout on."""
    with probing(model, training=True):
        output: ModelOutput = model(image, return_features=True)
    average = output.map.mean((2, 3))
    return average.shape == output.pooled.shape and is_close(average, output.pooled)


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether ``a`` and ``b`` are equal up to rounding."""
    return bool((a - b).abs().max() <= SAME * b.abs().max())


@contextmanager
def probing(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Lets ``model`` run without gradients and side effects on batch statistics, modes and random numbers.

    ``training`` puts all modules but normalisation in training mode.
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
    """One image of noise (1, 3, size, size), the same on every call."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
