from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_det.losses import dkd_loss, kd_loss, nkd_loss, standardize_logits
from tests.losses.cases import examples, logit_pairs

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random_logits(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    """Mean 3; squares 4 + 0 + 4 over C − 1 = 2: standard deviation 2."""
    logits = torch.tensor([[1.0, 3.0, 5.0]])
    assert standardize_logits(logits, eps=1e-12).tolist()[0] == pytest.approx([-1.0, 0.0, 1.0])
    assert standardize_logits(logits, eps=2.0).tolist()[0] == pytest.approx([-0.5, 0.0, 0.5])


def test_regions_are_standardised_each_for_itself():
    logits = random_logits(4, 5, 3)
    each = torch.stack([standardize_logits(region) for region in logits.unbind(2)], dim=2)
    torch.testing.assert_close(standardize_logits(logits), each, rtol=1e-14, atol=0)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_gradient_is_that_of_the_value(classes):
    assert torch.autograd.gradcheck(standardize_logits, random_logits(4, classes).requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_constant_row_gives_zeros_without_a_gradient(classes, dtype):
    logits = torch.tensor([[0.0], [0.1], [1000.1], [-3e4]], dtype=dtype).repeat(1, classes).requires_grad_()
    scores = standardize_logits(logits)
    assert not scores.any()
    slopes = torch.arange(classes, dtype=scores.dtype).expand(4, -1)
    (gradient,) = torch.autograd.grad(scores, logits, slopes)
    assert not gradient.any()


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("spread", [1e-3, 1e-4, 1e-5, 1e-7, 1e-12, 1e-30])
def test_a_nearly_constant_row_does_not_blow_up_the_gradient(classes, spread):
    """By the formula alone it would reach 1e5 at a spread of 1e-5, and 1e6 and more below."""
    logits = (spread * random_logits(8, classes)).requires_grad_()
    teacher = standardize_logits(random_logits(8, classes, seed=1))
    kd_loss(standardize_logits(logits), teacher, temperature=1.0).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() < 1e4


def test_two_classes_keep_only_which_is_greater():
    logits = torch.tensor([[1.0, 3.0], [7.0, -900.0]], dtype=torch.float64, requires_grad=True)
    scores = standardize_logits(logits)
    half = 1 / math.sqrt(2)
    torch.testing.assert_close(scores, torch.tensor([[-half, half], [half, -half]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), logits)
    assert gradient.abs().max() < 1e-6


@examples
@given(logit_pairs(), st.sampled_from(DTYPES))
def test_every_row_is_finite_with_zero_mean(case, dtype):
    logits, _, _ = case
    logits = logits.to(dtype).requires_grad_()
    scores = standardize_logits(logits)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert scores.isfinite().all()
    assert scores.mean(1).abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_logits_of_a_dtype_give_no_nan_and_no_inf(dtype):
    largest = torch.finfo(dtype).max
    logits = torch.tensor([[largest, -largest, 0.0], [largest] * 3, [largest, 0.0, 0.0]], dtype=dtype)
    logits.requires_grad_()
    scores = standardize_logits(logits)
    scores[:, 0].sum().backward()
    torch.testing.assert_close(scores[0].tolist(), [1.0, -1.0, 0.0])
    assert scores.isfinite().all()
    assert logits.grad.isfinite().all()


def test_large_logits_keep_their_small_differences():
    logits = torch.tensor([[4096.0, 4097.0, 4099.0]])
    torch.testing.assert_close(standardize_logits(logits), standardize_logits(logits - 4096.0))


@pytest.mark.parametrize("loss", [lambda s, t, y: kd_loss(s, t), dkd_loss, nkd_loss])
def test_a_student_of_another_range_agrees_with_the_teacher(loss):
    t, y = random_logits(6, 5), torch.arange(6) % 5
    s = (0.2 * t + 3.0).requires_grad_()
    standardised = loss(standardize_logits(s), standardize_logits(t), y)
    torch.testing.assert_close(standardised, loss(standardize_logits(t), standardize_logits(t), y))
    standardised.backward()
    assert s.grad.isfinite().all()


def test_autocast_changes_nothing():
    logits = random_logits(4, 7).float()
    with torch.autocast("cpu", torch.bfloat16):
        scores = standardize_logits(logits)
    assert scores.equal(standardize_logits(logits))


def test_an_empty_batch():
    logits = torch.zeros(0, 5, requires_grad=True)
    standardize_logits(logits).sum().backward()
    assert logits.grad.shape == (0, 5)


@pytest.mark.parametrize("shape", [(5,), (4, 1), ()])
def test_invalid_shapes(shape):
    with pytest.raises(ValueError, match=r"logits must be \(B, C\)"):
        standardize_logits(torch.zeros(shape))


def test_logits_that_are_not_floats():
    with pytest.raises(ValueError, match=r"logits must be float.*torch\.int64"):
        standardize_logits(torch.zeros(4, 5, dtype=torch.int64))


@pytest.mark.parametrize("eps", [0.0, -1e-7, float("nan"), float("inf")])
def test_invalid_eps(eps):
    with pytest.raises(ValueError, match=f"eps must be a finite number above 0; got {eps}"):
        standardize_logits(torch.zeros(4, 5), eps=eps)
