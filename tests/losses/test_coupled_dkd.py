"""The coupled weight of the non-target part: plain KD for α = 1, with reweighted TCKD otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from kd_det.losses import coupled_dkd_loss, kd_loss
from tests.losses.cases import examples, logit_pairs, temperatures, weights
from tests.losses.reference import log_two_way, tckd_and_nckd


def by_loops(s, t, y, alpha, temperature):
    losses = []
    for s_row, t_row, target in zip(s.tolist(), t.tolist(), y.tolist(), strict=True):
        s_row, t_row = ([z / temperature for z in row] for row in (s_row, t_row))
        tckd, nckd = tckd_and_nckd(s_row, t_row, target)
        rest = math.exp(log_two_way(t_row, target)[1])
        losses.append(temperature**2 * (alpha * tckd + rest * nckd))
    return torch.tensor(losses, dtype=torch.float64)


@examples
@given(logit_pairs(), weights, temperatures)
def test_is_the_plain_formula(pair, alpha, temperature):
    s, t, y = pair
    actual = coupled_dkd_loss(s, t, y, alpha=alpha, temperature=temperature, reduction="none")
    torch.testing.assert_close(actual, by_loops(s, t, y, alpha, temperature), rtol=1e-9, atol=1e-9)


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    s, t = 4 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    return s.to(dtype).requires_grad_(), t.to(dtype), torch.randint(5, (6,), generator=generator)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_alpha_1_is_plain_kd_gradient_included(reduction):
    s, t, y = batch()
    ours = coupled_dkd_loss(s, t, y, temperature=3.0, reduction=reduction)
    kd = kd_loss(s, t, temperature=3.0, reduction=reduction)
    torch.testing.assert_close(ours, kd, rtol=1e-12, atol=1e-14)
    (gradient,), (expected,) = (torch.autograd.grad(loss.sum(), s) for loss in (ours, kd))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_a_sure_teacher_leaves_a_little_and_not_zero():
    """1 − p_y of 2e-20, which 1 minus a float32 of 1 would not show."""
    s, t, y = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[45.0, 0.0, 0.0]]), torch.tensor([0])
    weighted = coupled_dkd_loss(s, t, y, alpha=0.0, temperature=1.0).item()
    assert weighted == pytest.approx(by_loops(s, t, y, 0.0, 1.0).item(), rel=1e-5)
    assert weighted > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_and_half_precision_stay_finite_and_in_float32(dtype):
    s, t, y = batch(dtype)
    for size in (1.0, 1e4):
        student = (size * s.detach()).requires_grad_()
        loss = coupled_dkd_loss(student, size * t, y)
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert student.grad.dtype == dtype and student.grad.isfinite().all()


def test_the_teacher_gets_no_gradient_and_an_empty_batch_keeps_the_graph():
    s, t, y = batch()
    t.requires_grad_()
    coupled_dkd_loss(s, t, y).backward()
    assert t.grad is None and s.grad.any()
    empty = torch.zeros(0, 5, requires_grad=True)
    loss = coupled_dkd_loss(empty, torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and empty.grad.shape == (0, 5)


def test_bad_settings_are_named():
    s, t, y = batch()
    for settings, words in (
        ({"alpha": -1.0}, "alpha must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"reduction": "median"}, "reduction must be"),
    ):
        with pytest.raises(ValueError, match=words):
            coupled_dkd_loss(s, t, y, **settings)
    with pytest.raises(ValueError, match="labels must be from 0 to 4; got 7"):
        coupled_dkd_loss(s, t, torch.full_like(y, 7))
    with pytest.raises(ValueError, match="student_logits and teacher_logits must both be"):
        coupled_dkd_loss(s, t[:, :4], y)
