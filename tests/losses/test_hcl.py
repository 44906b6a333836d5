from __future__ import annotations

import itertools

import pytest
import torch

from kd_det.losses import fitnet_loss, hcl_loss
from tests.losses.cases import random_maps


def bins(length, count):
    """The rows of each bin of adaptive pooling: from floor(i L / n) up to ceil((i + 1) L / n)."""
    return [range(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def pooled_by_loops(feature_map, side):
    height, width = feature_map.shape[2:]
    cells = itertools.product(bins(height, side), bins(width, side))
    means = [feature_map[:, :, list(rows)][:, :, :, list(columns)].mean((2, 3)) for rows, columns in cells]
    return torch.stack(means, 2)


def level_by_loops(s, t):
    terms = [(1.0, s.flatten(2), t.flatten(2))]
    for side in (4, 2, 1):
        if s.shape[2] > side and s.shape[3] > side:
            terms.append((0.5 ** len(terms), pooled_by_loops(s, side), pooled_by_loops(t, side)))
    return sum(w * (a - b).pow(2).mean() for w, a, b in terms) / sum(w for w, _, _ in terms)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 5), (4, 4), (8, 4), (3, 12), (2, 2), (2, 9), (1, 6), (1, 1)])
def test_equals_loops_over_the_bins(size):
    (s,), (t,) = random_maps(size), random_maps(size, seed=1)
    torch.testing.assert_close(hcl_loss([s], [t]), level_by_loops(s, t), rtol=1e-12, atol=0)


def test_by_hand():
    """Differences 8, 0, 0, ... on a 2 × 4 map: MSE 64/8 = 8, the 1 × 1 pooling 1, no 4 × 4 and 2 × 2: (8 + 1/2) / 1.5.

    A pooling that is left out does not use up a halving.
    """
    t = torch.zeros(1, 1, 2, 4)
    s = t.clone()
    s[..., 0, 0] = 8.0
    assert hcl_loss([s], [t]).item() == pytest.approx((8 + 1 / 2) / (3 / 2))


def test_a_constant_difference_costs_its_square():
    """All poolings see it alike: the weights are divided by their sum."""
    teacher = random_maps((16, 12), (8, 6), (4, 3))
    assert hcl_loss([m + 3.0 for m in teacher], teacher).item() == pytest.approx(3 * 9.0)


def test_levels_are_summed():
    student, teacher = (random_maps((16, 12), (8, 6), (1, 1), seed=seed) for seed in (0, 1))
    each = [hcl_loss([s], [t]) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(hcl_loss(student, teacher), torch.stack(each).sum(), rtol=1e-14, atol=0)


def test_noise_around_the_same_means_costs_less_than_a_shift():
    (t,) = random_maps((16, 16))
    noise = torch.ones(16, 16, dtype=torch.float64)
    noise[::2] = -1
    assert fitnet_loss([t + noise], [t]) == pytest.approx(fitnet_loss([t + 1], [t]).item())
    assert hcl_loss([t + noise], [t]).item() == pytest.approx(1 / 1.875)
    assert hcl_loss([t + 1], [t]).item() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9)])
def test_a_map_of_one_row_has_nothing_to_pool(size):
    student, teacher = random_maps(size), random_maps(size, seed=1)
    assert hcl_loss(student, teacher) == fitnet_loss(student, teacher)
