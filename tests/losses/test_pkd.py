from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_det.losses import pkd_loss
from tests.losses.cases import random_maps

SIZES = [(8, 6), (5, 3), (1, 7)]


def one_minus_pearson(s, t):
    """Averaged over the channels, by numpy."""
    channels = zip(s.detach().transpose(0, 1).flatten(1).numpy(), t.transpose(0, 1).flatten(1).numpy(), strict=True)
    return float(np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in channels]))


def pair(*sizes, **settings):
    return [m.requires_grad_() for m in random_maps(*sizes, **settings)], random_maps(*sizes, seed=1, **settings)


def test_is_one_minus_the_correlation_averaged_over_channels_and_levels():
    student, teacher = pair(*SIZES)
    expected = np.mean([one_minus_pearson(s, t) for s, t in zip(student, teacher, strict=True)])
    assert pkd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_by_hand():
    """Two images of 1 × 2: (0, 0, 4, 4) and (0, 4, 0, 4) do not correlate, with (4, 4, 0, 0) it is opposed."""
    s = torch.tensor([0.0, 0.0, 4.0, 4.0]).view(2, 1, 1, 2)
    for values, expected in (([0.0, 4.0, 0.0, 4.0], 1.0), ([4.0, 4.0, 0.0, 0.0], 2.0), ([0.0, 0.0, 1.0, 1.0], 0.0)):
        t = torch.tensor(values).view(2, 1, 1, 2)
        assert pkd_loss([s], [t]).item() == pytest.approx(expected, abs=1e-5)


def test_scale_and_offset_of_a_channel_do_not_count():
    student, teacher = pair(*SIZES)
    factor = torch.tensor([0.5, 20.0, 3.0], dtype=torch.float64).view(1, 3, 1, 1)
    moved = [factor * m - 7.0 for m in teacher]
    assert pkd_loss(student, moved).item() == pytest.approx(pkd_loss(student, teacher).item(), rel=1e-5)
    assert pkd_loss(teacher, moved).item() == pytest.approx(0, abs=1e-10)


def test_large_offsets_keep_small_differences():
    student, teacher = ([m.detach().float() for m in maps] for maps in pair((8, 6)))
    moved = [m + 4096.0 for m in student]
    rounded = [m - 4096.0 for m in moved]
    assert pkd_loss(moved, teacher).item() == pytest.approx(pkd_loss(rounded, teacher).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1])
def test_a_constant_channel_passes_no_gradient(dtype, value):
    """On one side it costs 1/2, on both nothing."""
    student, teacher = ([m.detach().to(dtype) for m in maps] for maps in pair((9, 7), channels=1))
    constant = torch.full_like(student[0], value).requires_grad_()
    one = pkd_loss([constant], teacher)
    assert one.item() == pytest.approx(0.5, rel=1e-5)
    assert pkd_loss([constant], [torch.full_like(teacher[0], -3.3)]).item() == 0
    one.backward()
    assert not constant.grad.any()

    student[0].requires_grad_()
    other = pkd_loss(student, [constant.detach()])
    assert other.item() == pytest.approx(0.5, rel=1e-5)
    other.backward()
    assert student[0].grad.abs().max() < 1e-4


@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-7, 1e-12])
def test_a_nearly_constant_channel_does_not_blow_up_the_gradient(spread):
    student, teacher = pair((9, 7), channels=1)
    narrow = (spread * student[0].detach() + 2.0).requires_grad_()
    pkd_loss([narrow], teacher).backward()
    assert narrow.grad.norm() < 1e4


def test_one_value_a_channel_costs_nothing():
    student, teacher = pair((1, 1), batch=1)
    loss = pkd_loss(student, teacher)
    loss.backward()
    assert loss == 0
    assert not student[0].grad.any()
