"""Our losses on logits equal their plain formulas in value and gradient, up to where the formulas fail."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given

from kd_det.losses import coupled_dkd_loss, dkd_loss, kd_loss, nkd_loss, sdd_loss, standardize_logits, textbook
from tests.losses.cases import examples, logit_pairs, temperatures

# Ours, the plain formula, and settings that both take.
PAIRS = {
    "kd": (lambda s, t, y, **settings: kd_loss(s, t, **settings), lambda s, t, y, **k: textbook.kd(s, t, **k), {}),
    "dkd": (dkd_loss, textbook.dkd, {"alpha": 0.7, "beta": 3.0}),
    "tckd": (partial(dkd_loss, alpha=1.0, beta=0.0), textbook.tckd, {}),
    "nckd": (partial(dkd_loss, alpha=0.0, beta=1.0), textbook.nckd, {}),
    "coupled_dkd": (coupled_dkd_loss, textbook.coupled_dkd, {"alpha": 0.7}),
    "nkd": (nkd_loss, textbook.nkd, {"gamma": 0.7}),
}
ALL = pytest.mark.parametrize("name", PAIRS)
# Those that take no logarithm of a probability.
LOG_SPACE = pytest.mark.parametrize("name", ["kd", "nckd", "nkd"])


def assert_same(ours, theirs, s, scale):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11 * scale)
    (gradient,), (expected,) = (torch.autograd.grad(loss.sum(), s) for loss in (ours, theirs))
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11 * scale)


def batch(*shape, dtype=torch.float64):
    s, t = 3 * torch.randn(2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return s.requires_grad_(), t, torch.arange(shape[0]) % shape[1]


@ALL
@pytest.mark.parametrize("classes", [2, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values_and_gradients_of_moderate_logits(name, classes, temperature):
    s, t, y = batch(16, classes)
    ours, plain, settings = PAIRS[name]
    settings = {**settings, "temperature": temperature}
    losses = plain(s, t, y, **settings)
    assert losses.shape == (16,)
    assert_same(ours(s, t, y, **settings, reduction="none"), losses, s, temperature**2)


@LOG_SPACE
@examples
@given(case=logit_pairs(), temperature=temperatures)
def test_values_and_gradients_of_any_logits(name, case, temperature):
    s, t, y = case
    ours, plain, settings = PAIRS[name]
    settings = {**settings, "temperature": temperature}
    s.requires_grad_()
    assert_same(ours(s, t, y, **settings, reduction="none"), plain(s, t, y, **settings), s, temperature**2)


@pytest.mark.parametrize("name", ["kd", "dkd", "coupled_dkd", "nkd"])
def test_defaults_are_the_same(name):
    s, t, y = batch(8, 5)
    ours, plain, _ = PAIRS[name]
    torch.testing.assert_close(ours(s, t, y), plain(s, t, y).mean())


@pytest.mark.parametrize("name", ["kd", "dkd", "nkd"])
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_sdd_over_each_of_them(name, weight):
    s, t, y = batch(20, 4, 5)
    ours, plain, settings = PAIRS[name]
    theirs = textbook.sdd(s, t, y, base=plain, complementary_weight=weight, **settings)
    loss = {"kd": kd_loss}.get(name, ours)
    assert theirs.shape == (20,)
    assert_same(sdd_loss(s, t, y, base=loss, complementary_weight=weight, **settings), theirs.mean(), s, 1)


def test_sdd_defaults_are_the_same():
    s, t, y = batch(8, 4, 5)
    torch.testing.assert_close(sdd_loss(s, t, y), textbook.sdd(s, t, y).mean())


@pytest.mark.parametrize("shape", [(6, 5), (6, 1000), (4, 5, 7)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_standardize(shape, size):
    logits = (size * batch(*shape)[0].detach()).requires_grad_()
    ours, theirs = standardize_logits(logits), textbook.standardize(logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    (gradient,), (expected,) = (torch.autograd.grad(z.square().mul(z).sum(), logits) for z in (ours, theirs))
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9 / size)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 110.0), (torch.float64, 750.0)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_where_dkd_fails(dtype, gap, temperature):
    """At the gaps that textbook.tckd names, and not at half of them."""
    s = temperature * torch.tensor([[-gap, 0.0, 1.0]], dtype=dtype)
    t, y = torch.zeros(1, 3, dtype=dtype), torch.tensor([0])
    for loss in (textbook.tckd, textbook.dkd, textbook.coupled_dkd):
        assert not loss(s, t, y, temperature=temperature).isfinite()
        assert loss(s / 2, t, y, temperature=temperature).isfinite()
    assert dkd_loss(s, t, y, temperature=temperature).isfinite()


def test_where_standardize_fails():
    logits = torch.ones(1, 5, requires_grad=True)
    for standardize, greatest in ((textbook.standardize, 8e6), (standardize_logits, 0.0)):
        (gradient,) = torch.autograd.grad(standardize(logits)[0, 0], logits)
        assert gradient.max() == pytest.approx(greatest)
