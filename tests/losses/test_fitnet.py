from __future__ import annotations

import pytest
import torch

from kd_det.losses import fitnet_loss
from tests.losses.cases import random_maps


def test_by_hand():
    """(1 + 4) / 2 on the first level, 9 on the second, and their mean."""
    student = [torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([3.0]).view(1, 1, 1, 1)]
    teacher = [torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)]
    assert fitnet_loss(student, teacher).item() == pytest.approx((2.5 + 9) / 2)


def test_a_large_level_counts_no_more_than_a_small_one():
    student, teacher = (random_maps((20, 30), (2, 3), seed=seed) for seed in (0, 1))
    each = [(s - t).pow(2).mean() for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(fitnet_loss(student, teacher), (each[0] + each[1]) / 2, rtol=1e-12, atol=0)
