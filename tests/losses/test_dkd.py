from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_det.losses import dkd_loss, kd_loss
from tests.losses.cases import examples, logit_pairs, temperatures, weights
from tests.losses.reference import dkd_by_loops, dkd_in_log_space

LOG_2, LOG_3 = math.log(2), math.log(3)


def gradient_of(loss, s):
    return torch.autograd.grad(loss.sum(), s)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_by_hand(temperature):
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), the target first: p̂ = (1/2, 1/2), q̂ = (2/3, 1/3), δ = −1/4.

    TCKD = 1/2 log 2 + 1/2 log 2/3, NCKD = 1/2 log 3/4 + 1/2 log 3/2; with α = 1 and β = 2 the gradient is
    δ = −1/4, 2 (2/3 − 1/2) + 1/4 · 2/3 = 1/2, 2 (1/3 − 1/2) + 1/4 · 1/3 = −1/4.
    """
    s = temperature * torch.tensor([[0.0, LOG_2, 0.0]], dtype=torch.float64)
    t = temperature * torch.tensor([[LOG_2, 0.0, 0.0]], dtype=torch.float64)
    s.requires_grad_()
    loss = dkd_loss(s, t, torch.tensor([0]), alpha=1.0, beta=2.0, temperature=temperature)
    loss.backward()
    tckd = 0.5 * LOG_2 + 0.5 * (LOG_2 - LOG_3)
    nckd = 0.5 * (LOG_3 - 2 * LOG_2) + 0.5 * (LOG_3 - LOG_2)
    assert loss.item() == pytest.approx(temperature**2 * (tckd + 2 * nckd), rel=1e-13)
    assert s.grad.tolist()[0] == pytest.approx([-temperature / 4, temperature / 2, -temperature / 4], rel=1e-13)


@examples
@given(logit_pairs(), weights, weights, temperatures)
def test_value_is_that_of_plain_loops_and_gradient_that_of_autograd(case, alpha, beta, temperature):
    s, t, y = case
    s.requires_grad_()
    keywords = {"alpha": alpha, "beta": beta, "temperature": temperature}
    loss = dkd_loss(s, t, y, **keywords, reduction="none")
    tolerance = 1e-11 * (alpha + beta) * temperature**2
    assert loss.tolist() == pytest.approx(dkd_by_loops(s, t, y, **keywords), rel=1e-9, abs=tolerance)
    expected = gradient_of(dkd_in_log_space(s, t, y, **keywords), s)
    torch.testing.assert_close(gradient_of(loss, s), expected, rtol=1e-9, atol=1e-11 * (alpha + beta) * temperature)


@examples
@given(logit_pairs(), temperatures, st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_is_finite_and_not_negative(case, temperature, dtype):
    s, t, y = case
    s, t = s.to(dtype).requires_grad_(), t.to(dtype)
    loss = dkd_loss(s, t, y, temperature=temperature, reduction="none")
    assert loss.isfinite().all()
    assert (loss >= -1e-5 * temperature**2).all()
    assert gradient_of(loss, s).isfinite().all()


@examples
@given(logit_pairs(), temperatures)
def test_kd_is_tckd_and_one_minus_p_y_times_nckd(case, temperature):
    s, t, y = case
    s.requires_grad_()
    keywords = {"temperature": temperature, "reduction": "none"}
    one_minus_p = 1 - (t / temperature).softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    tckd = dkd_loss(s, t, y, alpha=1.0, beta=0.0, **keywords)
    nckd = dkd_loss(s, t, y, alpha=0.0, beta=1.0, **keywords)
    kd, parts = kd_loss(s, t, **keywords), tckd + one_minus_p * nckd
    torch.testing.assert_close(parts, kd, rtol=1e-9, atol=1e-10 * temperature**2)
    torch.testing.assert_close(gradient_of(parts, s), gradient_of(kd, s), rtol=1e-9, atol=1e-11 * temperature)


@examples
@given(logit_pairs(), weights, weights)
def test_is_linear_in_alpha_and_beta(case, alpha, beta):
    s, t, y = case
    s.requires_grad_()
    loss = dkd_loss(s, t, y, alpha=alpha, beta=beta, reduction="none")
    tckd = dkd_loss(s, t, y, alpha=1.0, beta=0.0, reduction="none")
    nckd = dkd_loss(s, t, y, alpha=0.0, beta=1.0, reduction="none")
    parts = alpha * tckd + beta * nckd
    torch.testing.assert_close(loss, parts, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient_of(loss, s), gradient_of(parts, s), rtol=1e-12, atol=1e-12)


def test_two_classes_have_a_tckd_and_no_nckd():
    s, t = torch.randn(2, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s.requires_grad_()
    y = torch.tensor([0, 1] * 4)
    nckd = dkd_loss(s, t, y, alpha=0.0, beta=1.0, reduction="none")
    assert nckd.tolist() == [0.0] * 8
    assert not gradient_of(nckd, s).any()
    tckd = dkd_loss(s, t, y, alpha=1.0, beta=5.0, reduction="none")
    torch.testing.assert_close(tckd, kd_loss(s, t, reduction="none"))
    torch.testing.assert_close(gradient_of(tckd, s), gradient_of(kd_loss(s, t, reduction="none"), s))


def test_nckd_does_not_see_the_target():
    s, t = torch.randn(2, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 5
    s_moved = s.scatter(1, y.unsqueeze(1), 1e4).requires_grad_()
    t_moved = t.scatter(1, y.unsqueeze(1), -1e4)
    moved = dkd_loss(s_moved, t_moved, y, alpha=0.0, beta=1.0, reduction="none")
    torch.testing.assert_close(moved, dkd_loss(s, t, y, alpha=0.0, beta=1.0, reduction="none"))
    assert not gradient_of(moved, s_moved).gather(1, y.unsqueeze(1)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_sure_of_the_target_still_teaches_the_others(dtype):
    """p_y rounds to 1 and 1 − p_y to 0, the rest having exp(−200). p̂ and q̂ have log-odds of 3 and 2."""
    s = torch.tensor([[0.0, 1.0, -1.0]], dtype=dtype, requires_grad=True)
    t = torch.tensor([[200.0, 0.0, -3.0]], dtype=dtype)
    loss = dkd_loss(s, t, torch.tensor([0]), alpha=0.0, beta=1.0, temperature=1.0)
    loss.backward()
    (p_1, p_2), (q_1, q_2) = ((1 / (1 + math.exp(-odds)), 1 / (1 + math.exp(odds))) for odds in (3, 2))
    assert loss.item() == pytest.approx(p_1 * math.log(p_1 / q_1) + p_2 * math.log(p_2 / q_2), rel=1e-5)
    assert s.grad.tolist()[0] == pytest.approx([0.0, q_1 - p_1, q_2 - p_2], rel=1e-5)


def test_a_student_sure_against_the_target_is_told_so():
    """log q_y is −500 and q_y 0: TCKD is p_y (log p_y + 500) + (1 − p_y) log (1 − p_y), its slope −p_y."""
    s = torch.tensor([[-500.0, 0.0, -1000.0]], requires_grad=True)
    t = torch.tensor([[LOG_3, 0.0, -1000.0]])
    loss = dkd_loss(s, t, torch.tensor([0]), alpha=1.0, beta=0.0, temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * (math.log(0.75) + 500) + 0.25 * math.log(0.25), rel=1e-6)
    assert s.grad.tolist()[0] == pytest.approx([-0.75, 0.75, 0.0], rel=1e-6)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_invalid_weights(name, weight):
    with pytest.raises(ValueError, match=f"{name} must be a finite number, 0 or more; got {weight}"):
        dkd_loss(torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), **{name: weight})
