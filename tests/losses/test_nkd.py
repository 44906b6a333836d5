from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_det.losses import nkd_loss, textbook
from tests.losses.cases import examples, logit_pairs, temperatures, weights
from tests.losses.reference import nkd_by_loops

LOG_2, LOG_3 = math.log(2), math.log(3)


def gradient_of(loss, s):
    return torch.autograd.grad(loss.sum(), s)[0]


def random_batch(classes=5):
    s, t = torch.randn(2, 8, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return s.requires_grad_(), t, torch.arange(8) % classes


def test_by_hand():
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), the target first: p̂ = (1/2, 1/2), q̂ = (2/3, 1/3).

    The loss is 1/2 log 4 + γ (1/2 log 3/2 + 1/2 log 3); with γ = 3 the gradient is −1/2 · 3/4 = −3/8,
    1/2 · 1/2 + 3 (2/3 − 1/2) = 3/4, 1/2 · 1/4 + 3 (1/3 − 1/2) = −3/8.
    """
    s = torch.tensor([[0.0, LOG_2, 0.0]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[LOG_2, 0.0, 0.0]], dtype=torch.float64)
    loss = nkd_loss(s, t, torch.tensor([0]), gamma=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(LOG_2 + 3 * 0.5 * (2 * LOG_3 - LOG_2), rel=1e-14)
    assert s.grad.tolist()[0] == pytest.approx([-3 / 8, 3 / 4, -3 / 8], rel=1e-14)


def test_by_hand_at_temperature_2():
    """The others' logits are 2 log 2 and 0 for the student, 0 and 2 log 3 for the teacher: q̂ = (2/3, 1/3),
    p̂ = (1/4, 3/4) at T = 2, but q¹ = (1/6, 4/6, 1/6) and p¹ = (1/11, 1/11, 9/11) at T = 1.
    """
    s = torch.tensor([[0.0, 2 * LOG_2, 0.0]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[0.0, 0.0, 2 * LOG_3]], dtype=torch.float64)
    loss = nkd_loss(s, t, torch.tensor([0]), gamma=0.5, temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(6) / 11 + 0.5 * 4 * (LOG_3 - LOG_2 / 4), rel=1e-14)
    expected = [-5 / 66, 4 / 66 + 2 / 3 - 1 / 4, 1 / 66 + 1 / 3 - 3 / 4]
    assert s.grad.tolist()[0] == pytest.approx(expected, rel=1e-14)


@examples
@given(logit_pairs(), weights, temperatures)
def test_equals_plain_loops(case, gamma, temperature):
    s, t, y = case
    loss = nkd_loss(s, t, y, gamma=gamma, temperature=temperature, reduction="none")
    expected = nkd_by_loops(s, t, y, gamma=gamma, temperature=temperature)
    assert loss.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11 * (1 + gamma * temperature**2))


@examples
@given(
    logit_pairs(),
    temperatures,
    st.sampled_from([(torch.float16, 1), (torch.float16, 6), (torch.bfloat16, 1), (torch.float32, 1)]),
)
def test_is_right_in_every_dtype_up_to_large_logits(case, temperature, kind):
    """Up to ±1e4, in float16 to ±6e4, against float64 on the same, already rounded logits."""
    dtype, factor = kind
    s, t, y = case
    s, t = (s * factor).to(dtype).requires_grad_(), (t * factor).to(dtype)
    loss = nkd_loss(s, t, y, temperature=temperature, reduction="none")
    wide = s.detach().double().requires_grad_()
    expected = textbook.nkd(wide, t.double(), y, temperature=temperature)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-5 * (1 + temperature**2))
    tolerance = max(2e-5, torch.finfo(dtype).eps)
    torch.testing.assert_close(
        gradient_of(loss, s).double(), gradient_of(expected, wide), rtol=tolerance, atol=tolerance * (1 + temperature)
    )


@examples
@given(logit_pairs(), weights)
def test_is_linear_in_gamma(case, gamma):
    s, t, y = case
    s.requires_grad_()
    of_target, both, loss = (nkd_loss(s, t, y, gamma=g, reduction="none") for g in (0.0, 1.0, gamma))
    parts = of_target + gamma * (both - of_target)
    torch.testing.assert_close(loss, parts, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradient_of(loss, s), gradient_of(parts, s), rtol=1e-11, atol=1e-11)


def test_two_classes_leave_only_the_target():
    s, t, y = random_batch(classes=2)
    loss = nkd_loss(s, t, y, gamma=5.0, temperature=3.0, reduction="none")
    assert loss.equal(nkd_loss(s, t, y, gamma=0.0, reduction="none"))
    torch.testing.assert_close(loss, textbook.nkd(s, t, y, gamma=0.0))
    sure = torch.tensor([[1000.0, 0.0]], dtype=torch.float64)
    assert nkd_loss(sure, t[:1], y[:1], gamma=5.0) == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_others_do_not_see_the_target(temperature):
    s, t, y = random_batch()
    target = y.unsqueeze(1)

    def of_others(s, t):
        both, of_target = (nkd_loss(s, t, y, gamma=g, temperature=temperature, reduction="none") for g in (1.0, 0.0))
        return both - of_target

    # The student surely wrong, then surely right; a teacher without a doubt of either kind.
    for s_target, t_target in ((-50.0, 1e4), (50.0, -1e4)):
        s_moved = s.detach().scatter(1, target, s_target).requires_grad_()
        moved = of_others(s_moved, t.scatter(1, target, t_target))
        torch.testing.assert_close(moved, of_others(s, t))
        assert gradient_of(moved, s_moved).gather(1, target).abs().max() <= 1e-14


def test_the_temperature_does_not_reach_the_target():
    s, t, y = random_batch()
    values = [nkd_loss(s, t, y, gamma=0.0, temperature=temperature) for temperature in (0.5, 1.0, 7.0)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-14, atol=0)
    torch.testing.assert_close(values[2], values[1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_an_equal_student_is_still_pulled_towards_the_target(temperature):
    """The others' part has no gradient there; the target's is p_y (p_c − [c = y])."""
    s, _, y = random_batch()
    gradient = gradient_of(nkd_loss(s, s.detach(), y, temperature=temperature, reduction="sum"), s)
    p = s.detach().softmax(1)
    one_hot = torch.nn.functional.one_hot(y, 5)
    torch.testing.assert_close(gradient, p.gather(1, y.unsqueeze(1)) * (p - one_hot), rtol=1e-12, atol=1e-14)


def test_a_teacher_sure_of_the_target_makes_it_cross_entropy():
    s, _, y = random_batch()
    t = torch.zeros_like(s).scatter(1, y.unsqueeze(1), 1000.0).detach()
    expected = torch.nn.functional.cross_entropy(s, y)
    torch.testing.assert_close(nkd_loss(s, t, y, gamma=0.0), expected)


@pytest.mark.parametrize("gamma", [-0.1, float("nan"), float("inf")])
def test_invalid_weights(gamma):
    with pytest.raises(ValueError, match=f"gamma must be a finite number, 0 or more; got {gamma}"):
        nkd_loss(torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), gamma=gamma)
