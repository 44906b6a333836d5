"""Every public loss gives the values and gradients that it gave when values_before.json was written.

``python -m tests.losses.test_values_kept NAME ...`` writes those of the cases NAME again, or of all. That is right only
for a case whose value changes on purpose, in the change that says so.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_det import losses

FILE = Path(__file__).with_name("values_before.json")
SIZES = [(9, 7), (5, 5), (2, 6), (1, 1)]
# A case gives its outputs by name, and the inputs whose gradients count.
Case = tuple[dict[str, Tensor], list[Tensor]]


def numbers(seed: int, *shape: int, size: float = 3.0) -> Tensor:
    """Float64 within ±size: sines of integers, the same with every version of torch."""
    count = math.prod(shape)
    values = [size * math.sin(seed + (1 + seed % 5) * k * k) for k in range(1, count + 1)]
    return torch.tensor(values, dtype=torch.float64).view(shape)


def leaf(seed: int, *shape: int, size: float = 3.0) -> Tensor:
    return numbers(seed, *shape, size=size).requires_grad_()


def labels(count: int, classes: int, seed: int = 0) -> Tensor:
    return torch.tensor([(seed + k * k) % classes for k in range(count)], dtype=torch.int64)


def fill(module: nn.Module) -> nn.Module:
    """Parameters and statistics by ``numbers``; variances positive."""
    with torch.no_grad():
        for seed, (name, tensor) in enumerate(sorted(module.state_dict().items())):
            if tensor.is_floating_point():
                tensor.copy_(numbers(seed, *tensor.shape, size=0.5))
                if "var" in name:
                    tensor.abs_().add_(0.5)
    return module


def logit_loss(loss: Callable[..., Tensor], shape: tuple[int, ...], size: float, labelled: bool = True) -> Case:
    s, t = leaf(1, *shape, size=size), numbers(2, *shape, size=size)
    return {"loss": loss(s, t, *([labels(shape[0], shape[1])] if labelled else []))}, [s]


def map_loss(loss: Callable[..., Tensor], masked: bool = False) -> Case:
    s = [leaf(3 + level, 2, 3, *size) for level, size in enumerate(SIZES)]
    t = [numbers(13 + level, 2, 3, *size) for level, size in enumerate(SIZES)]
    masks = [[numbers(23 + level, 2, *size) > 0.5 for level, size in enumerate(SIZES)]] if masked else []
    return {"loss": loss(s, t, *masks)}, s


def at_of_other_sizes() -> Case:
    s = [leaf(1, 2, 3, 8, 6), leaf(2, 2, 3, 4, 4)]
    t = [numbers(3, 2, 5, 4, 7), numbers(4, 2, 2, 2, 2)]
    return {"loss": losses.at_loss(s, t, power=3)}, s


def feature_loss(loss: Callable[..., Tensor]) -> Case:
    s = leaf(1, 6, 4)
    return {"loss": loss(s, numbers(2, 6, 7))}, [s]


def weighted(outputs: Tensor | Iterable[Tensor]) -> Tensor:
    """One number that every output has a part in."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return torch.stack([(numbers(7 + k, *z.shape) * z).sum() for k, z in enumerate(outputs)]).sum()


def multi_scale() -> Case:
    feature_map, classifier = leaf(1, 2, 3, 7, 5), fill(nn.Linear(3, 4, dtype=torch.float64))
    assert isinstance(classifier, nn.Linear)
    logits = losses.multi_scale_logits(feature_map, classifier)
    return {"logits": weighted(logits)}, [feature_map, classifier.weight]


def standardize(shape: tuple[int, ...]) -> Case:
    logits = leaf(1, *shape)
    return {"logits": weighted(losses.standardize_logits(logits))}, [logits]


def pooled() -> Case:
    s, t = leaf(1, 2, 3, 8, 5), leaf(2, 2, 2, 4, 9)
    return {"maps": weighted(losses.pool_to_common_size(s, t))}, [s, t]


def fusion(training: bool) -> Case:
    module = fill(losses.ReviewKDFusion((3, 5, 4), (6, 2, 7), 8).double()).train(training)
    maps = [leaf(1, 2, 3, 9, 7), leaf(2, 2, 5, 4, 3), leaf(3, 2, 4, 2, 1)]
    return {"maps": weighted(module(maps))}, [*maps, *module.parameters()]


def mcld() -> Case:
    """The second step, of which the first has filled a part of the queue, in training and in evaluation."""
    module = losses.MCLDLoss(5, 16, category_norm="supcon").double()
    module(numbers(1, 6, 5), numbers(2, 6, 5), labels(6, 5), torch.arange(6))
    s = leaf(3, 6, 5)
    return module(s, numbers(4, 6, 5), labels(6, 3), torch.arange(3, 9)), [s]


def hcd() -> Case:
    module = fill(losses.HCDLoss(3, 6, 5, n=3, ce_weight=0.3, orthogonal_weight=7.0, temperature=2.0).double())
    s, student_map = leaf(1, 4, 5), leaf(2, 4, 3, 3, 2)
    outputs = module(s, numbers(3, 4, 5), labels(4, 5), student_map, numbers(4, 4, 6))
    return outputs, [s, student_map, *module.parameters()]


LOGIT_LOSSES = {
    "kd": (losses.kd_loss, {}, False),
    "kd T 1 sum": (losses.kd_loss, {"temperature": 1.0, "reduction": "sum"}, False),
    "dkd": (losses.dkd_loss, {}, True),
    "dkd T 1 alpha 0.7 beta 0.25": (losses.dkd_loss, {"temperature": 1.0, "alpha": 0.7, "beta": 0.25}, True),
    "coupled dkd": (losses.coupled_dkd_loss, {"alpha": 0.7}, True),
    "nkd": (losses.nkd_loss, {}, True),
    "nkd T 3 gamma 0.7 sum": (losses.nkd_loss, {"temperature": 3.0, "gamma": 0.7, "reduction": "sum"}, True),
}
# Two classes, the usual size, and logits at which probabilities underflow.
KINDS = {"4 x 2": ((4, 2), 3.0), "6 x 5": ((6, 5), 3.0), "8 x 100": ((8, 100), 10.0), "6 x 5 large": ((6, 5), 3000.0)}

CASES: dict[str, Callable[[], Case]] = {
    **{
        f"{name}, {kind}": partial(logit_loss, partial(loss, **settings), *shape_and_size, labelled)
        for name, (loss, settings, labelled) in LOGIT_LOSSES.items()
        for kind, shape_and_size in KINDS.items()
    },
    **{
        f"sdd, {name}": partial(logit_loss, partial(losses.sdd_loss, base=base, complementary_weight=3.0), (5, 4, 6), 3)
        for name, base in (("kd", losses.kd_loss), ("dkd", losses.dkd_loss), ("nkd", losses.nkd_loss))
    },
    "at": partial(map_loss, losses.at_loss),
    "at, other sizes": at_of_other_sizes,
    "fitnet": partial(map_loss, losses.fitnet_loss),
    "fgfi": partial(map_loss, losses.fgfi_loss, masked=True),
    "hcl": partial(map_loss, losses.hcl_loss),
    "pkd": partial(map_loss, losses.pkd_loss),
    "pool to common size": pooled,
    "rkd distance": partial(feature_loss, losses.rkd_distance_loss),
    "rkd angle": partial(feature_loss, losses.rkd_angle_loss),
    "multi-scale logits": multi_scale,
    "standardize, 6 x 5": partial(standardize, (6, 5)),
    "standardize, 2 x 5 x 3": partial(standardize, (2, 5, 3)),
    "fusion, training": partial(fusion, True),
    "fusion, evaluation": partial(fusion, False),
    "mcld": mcld,
    "hcd": hcd,
}


def figures(case: Callable[[], Case]) -> dict[str, dict[str, float | list[float]]]:
    """Of each output: its value, the norm of its gradient, and the gradient's products with three unit vectors."""
    outputs, inputs = case()
    found = {}
    for name, value in outputs.items():
        parts = torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in parts])
        directions = [nn.functional.normalize(numbers(seed, len(gradient)), dim=0) for seed in (1, 2, 3)]
        products = [gradient.dot(direction).item() for direction in directions]
        found[name] = {"value": value.item(), "norm": gradient.norm().item(), "products": products}
    return found


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_as_before(name: str) -> None:
    before = json.loads(FILE.read_text(encoding="utf-8"))[name]
    now = figures(CASES[name])
    assert list(now) == list(before)
    for output, expected in before.items():
        assert now[output]["value"] == pytest.approx(expected["value"], rel=1e-12, abs=1e-14)
        assert now[output]["norm"] == pytest.approx(expected["norm"], rel=1e-12, abs=1e-14)
        # Sums whose terms cancel: their rounding is that of the whole gradient.
        assert now[output]["products"] == pytest.approx(expected["products"], rel=1e-12, abs=1e-12 * expected["norm"])


def test_every_stored_value_has_a_case() -> None:
    assert set(json.loads(FILE.read_text(encoding="utf-8"))) == set(CASES)


def write(names: list[str]) -> None:
    stored = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    stored |= {name: figures(CASES[name]) for name in names or CASES}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(stored[name])}" for name in CASES)
    FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1:])
