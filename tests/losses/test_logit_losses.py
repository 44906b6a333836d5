"""Properties that the losses on logits share, one test for all of them. Each loss also has its own file."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from kd_det.losses import dkd_loss, kd_loss, nkd_loss, textbook
from tests.losses.reference import dkd_in_log_space

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WEIGHTS = {"alpha": 0.7, "beta": 3.0}


def kd(s, t, y, **settings):
    return kd_loss(s, t, **settings)


def kd_reference(s, t, y, **settings):
    return textbook.kd(s, t, **settings)


WITH_REFERENCE = pytest.mark.parametrize(
    ("loss", "reference"),
    [
        pytest.param(kd, kd_reference, id="kd"),
        pytest.param(partial(dkd_loss, **WEIGHTS), partial(dkd_in_log_space, **WEIGHTS), id="dkd"),
        pytest.param(partial(nkd_loss, gamma=0.7), partial(textbook.nkd, gamma=0.7), id="nkd"),
    ],
)
KD, DKD, NKD = (pytest.param(loss, id=name) for loss, name in ((kd, "kd"), (dkd_loss, "dkd"), (nkd_loss, "nkd")))
LOSSES = pytest.mark.parametrize("loss", [KD, DKD, NKD])
# Those that are 0 where student and teacher agree.
DIVERGENCES = pytest.mark.parametrize("loss", [KD, DKD])
LABELLED = pytest.mark.parametrize("loss", [DKD, NKD])


def batch(batch_size=6, classes=5, *, size=3.0, dtype=torch.float64, device="cpu", seed=0):
    """s and t uniform on [-size, size], and y."""
    generator = torch.Generator().manual_seed(seed)
    s, t = size * (2 * torch.rand(2, batch_size, classes, generator=generator, dtype=torch.float64) - 1)
    y = torch.randint(classes, (batch_size,), generator=generator)
    return s.to(device, dtype).requires_grad_(), t.to(device, dtype), y.to(device)


def value_and_gradient(loss, s, t, y, **settings):
    s = s.detach().requires_grad_()
    value = loss(s, t, y, **settings)
    (gradient,) = torch.autograd.grad(value.sum(), s)
    return value.detach(), gradient


def assert_like(actual, expected, tolerance, scale=1.0):
    """Equal to ``tolerance``, relative, or times ``scale``, absolute."""
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance * scale)


@LOSSES
@pytest.mark.parametrize(("temperature", "reduction"), [(0.5, "none"), (1.0, "sum"), (4.0, "mean")])
def test_gradient_is_that_of_the_value(loss, temperature, reduction):
    s, t, y = batch(4)
    assert torch.autograd.gradcheck(lambda s: loss(s, t, y, temperature=temperature, reduction=reduction), s)


@WITH_REFERENCE
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float64, 1e4),
        (torch.float32, 1e4),
        (torch.bfloat16, 1e4),
        (torch.float16, 6e4),
        (torch.float32, 5.0),
    ],
)
def test_value_and_gradient_are_right_for_large_logits(loss, reference, device, temperature, classes, dtype, size):
    s, t, y = batch(64, classes, size=size, dtype=dtype, device=device)
    value, gradient = value_and_gradient(loss, s, t, y, temperature=temperature, reduction="none")
    expected, expected_gradient = value_and_gradient(reference, s.double(), t.double(), y, temperature=temperature)
    assert value.isfinite().all()
    assert gradient.dtype == dtype
    assert_like(value, expected, 1e-5, scale=temperature**2)
    assert_like(gradient, expected_gradient, max(1e-5, torch.finfo(dtype).eps), scale=temperature)


@WITH_REFERENCE
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_large_logits_keep_their_small_differences(loss, reference, offset):
    s, t, y = batch(64, 10, dtype=torch.float32)
    s, t = s.detach() + offset, t + offset
    value, gradient = value_and_gradient(loss, s, t, y, temperature=3.0, reduction="none")
    expected, expected_gradient = value_and_gradient(reference, s.double(), t.double(), y, temperature=3.0)
    assert_like(value, expected, 1e-5, scale=9)
    assert_like(gradient, expected_gradient, 1e-5)


@LOSSES
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_logits_of_a_dtype_give_no_nan_and_no_inf(loss, dtype):
    largest = torch.finfo(dtype).max
    corners = torch.tensor([-largest, 0.0, largest], dtype=dtype)
    rows = torch.cartesian_prod(corners, corners, corners)
    s, t = (rows[indices] for indices in torch.cartesian_prod(*[torch.arange(len(rows))] * 2).unbind(1))
    for target, temperature in itertools.product(range(3), (1e-6, 1.0, 1e6)):
        y = torch.full((len(s),), target)
        value, gradient = value_and_gradient(loss, s, t, y, temperature=temperature, reduction="mean")
        assert value.isfinite()
        assert gradient.isfinite().all()


@LOSSES
def test_nan_is_not_hidden(loss):
    for network, column in itertools.product(range(2), range(3)):
        s, t, y = batch(3, 3)
        logits = s.detach(), t
        logits[network][1, column] = float("nan")
        assert loss(*logits, y, reduction="none").isnan().tolist() == [False, True, False]


@LOSSES
def test_an_infinite_logit_gives_a_loss_that_shows_it(loss):
    s, t, y = batch(dtype=torch.float32)
    s = s.detach()
    s[2, (int(y[2]) + 1) % 5] = float("inf")
    value = loss(s, t, y, reduction="none")
    assert 1e16 < value[2] < float("inf")
    assert (value[[0, 1, 3, 4, 5]] < 1e3).all()


@DIVERGENCES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_equal_logits_give_exactly_zero_and_no_gradient(loss, dtype):
    s, _, y = batch(16, 30, dtype=dtype)
    value, gradient = value_and_gradient(loss, s, s.detach(), y, temperature=3.0, reduction="none")
    assert value.tolist() == [0.0] * 16
    assert not gradient.any()


@LOSSES
def test_negative_zero_is_zero(loss):
    s, t, y = batch()
    s = s.detach()
    s[:, 1] = t[:, 3] = 0.0
    s_negative, t_negative = s.clone(), t.clone()
    s_negative[:, 1] = t_negative[:, 3] = -0.0
    for plain, negative in zip(
        value_and_gradient(loss, s, t, y), value_and_gradient(loss, s_negative, t_negative, y), strict=True
    ):
        assert plain.equal(negative)


@LOSSES
def test_a_shift_of_all_logits_changes_nothing(loss):
    s, t, y = batch()
    shift = torch.tensor([[-40.0], [3.0], [0.5], [1e3], [-7.0], [9.0]], dtype=torch.float64)
    for shifted in ((s + shift, t), (s, t + shift)):
        for a, b in zip(value_and_gradient(loss, *shifted, y), value_and_gradient(loss, s, t, y), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@LOSSES
def test_the_order_of_the_classes_does_not_matter(loss):
    s, t, y = batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    value, gradient = value_and_gradient(loss, s, t, y)
    permuted, permuted_gradient = value_and_gradient(loss, s[:, order], t[:, order], order.argsort()[y])
    torch.testing.assert_close(permuted, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(permuted_gradient, gradient[:, order], rtol=1e-11, atol=1e-14)


@DIVERGENCES
def test_a_larger_student_step_towards_the_teacher_lowers_the_loss_to_zero(loss):
    s, t, y = batch()
    values = [float(loss(torch.lerp(s.detach(), t, step), t, y)) for step in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert values[-2] > 0


@LOSSES
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_an_empty_batch_gives_a_zero_that_keeps_the_graph(loss, reduction):
    s, t, y = batch(0, 5)
    value = loss(s, t, y, reduction=reduction)
    assert value.shape == ((0,) if reduction == "none" else ())
    assert value.sum().item() == 0
    value.sum().backward()
    assert s.grad.shape == (0, 5)


@LOSSES
def test_reductions_are_those_of_torch(loss):
    s, t, y = batch()
    each, each_gradient = value_and_gradient(loss, s, t, y, reduction="none")
    assert each.shape == (6,)
    for reduction, factor in (("sum", 1.0), ("mean", 1 / 6)):
        value, gradient = value_and_gradient(loss, s, t, y, reduction=reduction)
        torch.testing.assert_close(value, factor * each.sum(), rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient, factor * each_gradient, rtol=1e-13, atol=1e-16)
    assert loss(s, t, y) == loss(s, t, y, reduction="mean")


@LOSSES
def test_each_sample_has_its_own_upstream_gradient(loss):
    s, t, y = batch()
    weights = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    (weighted,) = torch.autograd.grad(loss(s, t, y, reduction="none"), s, weights)
    _, gradient = value_and_gradient(loss, s, t, y, reduction="none")
    torch.testing.assert_close(weighted, weights[:, None] * gradient, rtol=1e-14, atol=0)


@LOSSES
def test_the_teacher_gets_no_gradient(loss):
    s, t, y = batch()
    t.requires_grad_()
    loss(s, t, y).backward()
    assert s.grad.any()
    assert t.grad is None
    assert not loss(s.detach(), t, y).requires_grad


@LOSSES
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd(loss, mode):
    s, t, y = batch()
    with mode():
        value = loss(s, t, y)
    assert not value.requires_grad
    assert value == loss(s, t, y)


@LOSSES
def test_the_arguments_are_left_as_they_were(loss):
    s, t, y = batch()
    copies = [z.detach().clone() for z in (s, t, y)]
    loss(s, t, y).backward()
    for argument, copy in zip((s, t, y), copies, strict=True):
        assert argument.detach().equal(copy)


@LOSSES
def test_backward_can_run_twice(loss):
    s, t, y = batch()
    value = loss(s, t, y)
    first = torch.autograd.grad(value, s, retain_graph=True)[0].clone()
    assert torch.autograd.grad(value, s)[0].equal(first)


@LOSSES
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_second_derivative_is_refused(loss, reduction):
    s, t, y = batch()
    # The square brings a derivative of its own, under which a gradient taken for a constant would go
    # unnoticed.
    value = loss(s, t, y, reduction=reduction).sum() + s.square().sum()
    (gradient,) = torch.autograd.grad(value, s, create_graph=True)
    expected = value_and_gradient(loss, s, t, y, reduction=reduction)[1] + 2 * s
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@LOSSES
def test_logits_need_not_be_contiguous(loss):
    s, t, y = batch()
    s_strided = s.detach().repeat_interleave(2, 1)[:, ::2].requires_grad_()
    t_strided = t.t().contiguous().t()
    y_strided = y.repeat_interleave(3)[::3]
    assert not (s_strided.is_contiguous() or t_strided.is_contiguous() or y_strided.is_contiguous())
    strided = value_and_gradient(loss, s_strided, t_strided, y_strided)
    for a, b in zip(strided, value_and_gradient(loss, s, t, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-16)


@LOSSES
def test_one_row_of_logits_may_serve_every_sample(loss):
    s, t, y = batch()
    expanded = t[:1].expand(6, 5)
    assert loss(s, expanded, y) == loss(s, expanded.contiguous(), y)


@LOSSES
@pytest.mark.parametrize("s_dtype", DTYPES)
def test_dtypes_widen_to_float32_or_more(loss, s_dtype):
    for t_dtype in DTYPES:
        s, t, y = batch()
        s, t = s.detach().to(s_dtype), t.to(t_dtype)
        wide = torch.float64 if torch.float64 in (s_dtype, t_dtype) else torch.float32
        value, gradient = value_and_gradient(loss, s, t, y)
        expected, expected_gradient = value_and_gradient(loss, s.to(wide), t.to(wide), y)
        assert value.dtype == wide
        assert gradient.dtype == s_dtype
        assert value.equal(expected)
        assert gradient.equal(expected_gradient.to(s_dtype))


@LOSSES
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_changes_nothing(loss, device):
    s, t, y = batch(dtype=torch.float32, device=device)
    expected = value_and_gradient(loss, s, t, y)
    with torch.autocast(device, torch.bfloat16):
        result = value_and_gradient(loss, s, t, y)
    for a, b in zip(result, expected, strict=True):
        assert a.dtype == torch.float32
        assert a.equal(b)


@LOSSES
@pytest.mark.parametrize("device", DEVICES)
def test_behind_a_head_under_autocast(loss, device):
    torch.manual_seed(0)
    head = nn.Linear(8, 5, device=device)
    features = torch.randn(6, 8, device=device)
    _, t, y = batch(dtype=torch.float32, device=device)
    with torch.autocast(device, torch.bfloat16):
        s = head(features)
        value = loss(s, t, y)
    s.retain_grad()
    value.backward()
    assert (s.dtype, value.dtype, head.weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    expected, expected_gradient = value_and_gradient(loss, s.float(), t, y)
    assert value.equal(expected)
    assert s.grad.equal(expected_gradient.bfloat16())


@LOSSES
def test_compiled(loss):
    s, t, y = batch(dtype=torch.float32)
    compiled = torch.compile(lambda s: loss(s, t, y), backend="aot_eager")
    for a, b in zip(
        value_and_gradient(lambda s, t, y: compiled(s), s, t, y),
        value_and_gradient(loss, s, t, y),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@LOSSES
def test_invalid_shapes(loss):
    pairs = [((4, 5), (4, 6)), ((4, 5), (3, 5)), ((4, 5), (5,)), ((4,), (4,)), ((2, 4, 5),) * 2, ((4, 1),) * 2]
    for s_shape, t_shape in pairs:
        assert_refused(loss, s_shape, t_shape)


def assert_refused(loss, s_shape, t_shape):
    with pytest.raises(ValueError, match=r"must both be \(B, C\) with C >= 2") as caught:
        loss(torch.zeros(s_shape), torch.zeros(t_shape), torch.zeros(4, dtype=torch.int64))
    assert str(s_shape) in str(caught.value)
    assert str(t_shape) in str(caught.value)


@LOSSES
@pytest.mark.parametrize(
    "s_shape, t_shape, remedy",
    [
        ((2, 3, 4, 5), (2, 3, 4, 5), r"Flatten the positions into the batch: logits\.movedim\(1, -1\)\.flat"),
        ((3,), (3,), "Add the dimension that is missing"),
        ((2, 3), (2, 3, 4), "Give both the same layout"),
        ((2, 3), (4, 3), "Give both the same samples"),
        ((2, 3), (2, 4), "Give both models the same classes"),
        ((2, 1), (2, 1), "as a separate class"),
    ],
)
def test_invalid_shapes_come_with_a_fitting_remedy(loss, s_shape, t_shape, remedy):
    with pytest.raises(ValueError, match=remedy):
        loss(torch.randn(s_shape), torch.randn(t_shape), torch.zeros(2, dtype=torch.int64))


def test_the_remedy_for_logits_of_positions_works():
    s, t, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    flat_s, flat_t = (logits.movedim(1, -1).flatten(0, -2) for logits in (s, t))
    places = [(row, column) for row in range(4) for column in range(5)]
    expected = torch.stack([dkd_loss(s[..., r, c], t[..., r, c], y[:, r, c]) for r, c in places]).mean()
    torch.testing.assert_close(dkd_loss(flat_s, flat_t, y.flatten()), expected)


@LOSSES
def test_logits_that_are_not_floats(loss):
    floats, y = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        for s, t in ((floats.to(dtype), floats), (floats, floats.to(dtype))):
            with pytest.raises(ValueError, match=f"logits must be float.*{dtype}"):
                loss(s, t, y)


@LOSSES
def test_logits_on_two_devices(loss):
    with pytest.raises(ValueError, match="student_logits are on cpu, teacher_logits on meta"):
        loss(torch.zeros(4, 5), torch.zeros(4, 5, device="meta"), torch.zeros(4, dtype=torch.int64))


@LOSSES
def test_invalid_temperatures(loss):
    s, t, y = batch()
    for temperature in (0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-7, 1e7):
        with pytest.raises(ValueError, match=f"temperature must be from 1e-06 to 1e\\+06; got {temperature}"):
            loss(s, t, y, temperature=temperature)


@LOSSES
def test_an_unknown_reduction(loss):
    s, t, y = batch()
    for reduction in ("batchmean", "Mean", "", None):
        with pytest.raises(ValueError, match=f'reduction must be "none", "mean" or "sum"; got {reduction!r}'):
            loss(s, t, y, reduction=reduction)


@LABELLED
@pytest.mark.parametrize("size", [1, 7, 5000])
def test_labels_out_of_range(loss, size):
    for label in (-100, -1, 5, 2**40):
        y = torch.zeros(size, dtype=torch.int64)
        y[-1] = label
        with pytest.raises(ValueError, match=f"labels must be from 0 to 4; got {label}"):
            loss(torch.zeros(size, 5), torch.zeros(size, 5), y)


@LABELLED
def test_labels_of_another_shape(loss):
    for shape in ((3,), (5,), (4, 1), ()):
        with pytest.raises(ValueError, match=r"labels must be \(4,\)"):
            loss(torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(shape, dtype=torch.int64))


@LABELLED
def test_labels_that_are_not_int64(loss):
    for dtype in (torch.int32, torch.float32, torch.bool):
        with pytest.raises(ValueError, match=f"labels must be int64 class indices; got {dtype}"):
            loss(torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(4, dtype=dtype))


@LABELLED
def test_labels_on_another_device(loss):
    with pytest.raises(ValueError, match="labels are on meta, the logits on cpu"):
        loss(torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64, device="meta"))
