from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_det.losses import kd_loss
from tests.losses.cases import examples, logit_pairs, temperatures
from tests.losses.reference import kd_by_loops

LOG_2, LOG_3 = math.log(2), math.log(3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_by_hand(temperature):
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2, and q − p = (−1/4, 1/4)."""
    s = torch.tensor([[5.0, 5.0]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[temperature * LOG_3, 0.0]], dtype=torch.float64)
    loss = kd_loss(s, t, temperature=temperature)
    loss.backward()
    assert loss.item() == pytest.approx(temperature**2 * (0.75 * (LOG_3 - LOG_2) - 0.25 * LOG_2), rel=1e-14)
    assert s.grad.tolist()[0] == pytest.approx([-0.25 * temperature, 0.25 * temperature], rel=1e-14)


@examples
@given(logit_pairs(), temperatures)
def test_equals_plain_loops(case, temperature):
    s, t, _ = case
    loss = kd_loss(s, t, temperature=temperature, reduction="none")
    assert loss.tolist() == pytest.approx(kd_by_loops(s, t, temperature), rel=1e-9, abs=1e-11 * temperature**2)


@examples
@given(logit_pairs(), temperatures, st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_is_finite_and_not_negative(case, temperature, dtype):
    s, t, _ = case
    loss = kd_loss(s.to(dtype), t.to(dtype), temperature=temperature, reduction="none")
    assert loss.isfinite().all()
    assert (loss >= -1e-6 * temperature**2).all()


def test_a_high_temperature_matches_centred_logits():
    """Section 2.1 of the paper: at high T the gradient is (s_c − t_c) / C, for logits of zero mean."""
    s, t = torch.randn(2, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s, t = (z - z.mean(1, keepdim=True) for z in (s, t))
    s.requires_grad_()
    kd_loss(s, t, temperature=1e5, reduction="sum").backward()
    torch.testing.assert_close(s.grad, (s.detach() - t) / 10, rtol=1e-3, atol=1e-5)
