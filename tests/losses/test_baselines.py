"""Properties that the losses of the baselines share, one test for all of them. Each loss also has its own file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kd_det import losses


class Case(NamedTuple):
    loss: Callable[[list[Tensor], list[Tensor]], Tensor]
    student: list[tuple[int, ...]]  # shapes without the batch
    teacher: list[tuple[int, ...]]


def fixed(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return make().to(dtype)


def widest(tensors: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def ctkd(s, t):
    return losses.ctkd_loss(s[0], t[0], torch.tensor(0.3), reversal=0.5)


def simkd(s, t):
    return fixed(lambda: losses.SimKDLoss(3, 4), widest(s + t))(s[0], t[0])


def vid(s, t):
    return fixed(lambda: losses.VIDLoss(3, 4), widest(s + t))(s[0], t[0])


def ofd(s, t):
    margins = [losses.ofd_margin(torch.linspace(0.5, 2, m.shape[1]), torch.linspace(-1, 1, m.shape[1])) for m in t]
    return losses.ofd_loss(s, t, margins)


def crd(s, t):
    module = fixed(lambda: losses.CRDLoss(4, 7, 12, feature_dim=8, negatives=6), widest(s + t))
    # The first step fixes Z, which is then a constant.
    module(torch.ones(1, 4), torch.ones(1, 7), torch.tensor([11]))
    return module(s[0], t[0], torch.arange(len(s[0])) * 2)


LOGITS = [(5,)]
MAPS = [(3, 5, 4), (2, 2, 3)]
OTHER_MAPS = [(4, 4, 6), (3, 3, 3)]
CASES = {
    "dist": Case(lambda s, t: losses.dist_loss(s[0], t[0], temperature=2), LOGITS, LOGITS),
    "mlkd": Case(lambda s, t: losses.mlkd_loss(s[0], t[0]), LOGITS, LOGITS),
    "ctkd": Case(ctkd, LOGITS, LOGITS),
    "catkd": Case(lambda s, t: losses.catkd_loss(s[0], t[0]), [(5, 4, 6)], [(5, 3, 4)]),
    "catkd plain": Case(lambda s, t: losses.catkd_loss(s[0], t[0], normalize=False), [(5, 4, 6)], [(5, 3, 4)]),
    "sp": Case(losses.sp_loss, MAPS, OTHER_MAPS),
    "nst": Case(losses.nst_loss, MAPS, OTHER_MAPS),
    "pkt": Case(lambda s, t: losses.pkt_loss(s[0], t[0]), [(4,)], [(7,)]),
    "kdsvd": Case(losses.kdsvd_loss, [(6, 4, 3), (8, 2, 3), (5, 4, 4)], [(6, 3, 3), (8, 5, 4), (5, 3, 3)]),
    "simkd": Case(simkd, [(3, 5, 4)], [(4, 4, 6)]),
    "vid": Case(vid, [(3, 5, 4)], [(4, 4, 6)]),
    "ofd": Case(ofd, [(3, 5, 4), (2, 2, 3)], [(3, 4, 6), (2, 4, 3)]),
    "crd": Case(crd, [(4,)], [(7,)]),
}
ALL = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
# Those without a square of a difference or a convolution, which float32 cannot hold for any input.
BOUNDED = {name: case for name, case in CASES.items() if name not in ("catkd plain", "simkd", "vid", "ofd", "crd")}
# Those without layers, which follow autocast.
WITHOUT_LAYERS = {name: case for name, case in CASES.items() if name not in ("simkd", "vid")}


def inputs(case, batch=4, size=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    sides = [
        [(size * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]
        for shapes in (case.student, case.teacher)
    ]
    return [m.requires_grad_() for m in sides[0]], sides[1]


def value_and_gradients(case, student, teacher):
    student = [m.detach().requires_grad_() for m in student]
    value = case.loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, student, materialize_grads=True)


def assert_finite(case, student, teacher):
    value, grads = value_and_gradients(case, student, teacher)
    assert value.shape == () and value.isfinite()
    assert all(grad.isfinite().all() for grad in grads)
    return grads


@ALL
@pytest.mark.parametrize("batch", [1, 4])
def test_gradient_is_that_of_the_value(case, batch):
    student, teacher = inputs(case, batch)
    assert torch.autograd.gradcheck(lambda *s: case.loss(list(s), teacher), student, fast_mode=True)


@ALL
def test_the_teacher_gets_no_gradient(case):
    student, teacher = inputs(case)
    for m in teacher:
        m.requires_grad_()
    case.loss(student, teacher).backward()
    assert all(m.grad is None for m in teacher)
    assert any(m.grad.any() for m in student)


@ALL
def test_an_empty_batch_gives_a_zero_that_keeps_the_graph(case):
    student, teacher = inputs(case, 0)
    value = case.loss(student, teacher)
    assert value.shape == () and value == 0
    value.backward()
    assert [m.grad.shape for m in student] == [(0, *shape) for shape in case.student]


@ALL
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_half_precision_is_computed_in_float32(case, dtypes):
    """Values of 300 and more, whose squares float16 cannot hold."""
    student, teacher = inputs(case, size=300)
    student = [m.detach().to(dtypes[0]) for m in student]
    teacher = [m.to(dtypes[1]) for m in teacher]
    value, grads = value_and_gradients(case, student, teacher)
    expected, expected_grads = value_and_gradients(case, [m.float() for m in student], [m.float() for m in teacher])
    assert value.dtype == torch.float32 and value.equal(expected)
    assert all(a.equal(b.to(dtypes[0])) for a, b in zip(grads, expected_grads, strict=True))


@pytest.mark.parametrize("name", WITHOUT_LAYERS)
def test_autocast_changes_nothing(name):
    case = CASES[name]
    student, teacher = inputs(case, dtype=torch.float32)
    expected, expected_grads = value_and_gradients(case, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        value = case.loss(student, teacher)
    grads = torch.autograd.grad(value, student)
    assert value.equal(expected)
    assert all(a.equal(b) for a, b in zip(grads, expected_grads, strict=True))


@ALL
def test_float64_stays_float64(case):
    student, teacher = inputs(case)
    assert case.loss([m.float() for m in student], teacher).dtype == torch.float64
    double = case.loss(student, teacher)
    single = case.loss([m.float() for m in student], [m.float() for m in teacher])
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@ALL
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1e4])
def test_every_size_gives_finite_numbers(case, size):
    for batch in (1, 4):
        student, teacher = inputs(case, batch, size, torch.float32)
        assert_finite(case, student, teacher)
        assert_finite(case, student, inputs(case, batch, dtype=torch.float32)[1])


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_numbers_of_a_dtype_give_no_nan_and_no_inf(name, dtype):
    case, largest = CASES[name], torch.finfo(dtype).max
    student, teacher = inputs(case, dtype=dtype)
    huge, huge_teacher = ([m.detach().sign() * largest for m in side] for side in (student, teacher))
    assert_finite(case, huge, huge_teacher)
    assert_finite(case, student, huge_teacher)
    assert_finite(case, huge, teacher)
    # One entry in a hundred.
    assert_finite(case, [torch.where(m.abs() > 2, h, m) for m, h in zip(student, huge, strict=True)], teacher)


@pytest.mark.parametrize("name", [name for name in CASES if name != "simkd"])
def test_small_inputs_do_not_blow_up_the_gradient(name):
    """SimKD's batch normalisations multiply small values by 300 each, as they do in any network."""
    case = CASES[name]
    for size in (1e-3, 1e-5, 1e-10, 1e-30):
        student, _ = inputs(case, size=size)
        grads = assert_finite(case, student, inputs(case)[1])
        assert max(grad.norm() for grad in grads) < 1e4


@ALL
def test_a_sample_twice_and_samples_all_alike(case):
    student, teacher = inputs(case)
    for rows in ([0, 0, 1, 2], [0, 0, 0, 0]):
        assert_finite(case, [m[rows] for m in student], teacher)
        assert_finite(case, student, [m[rows] for m in teacher])
        assert_finite(case, [m[rows] for m in student], [m[rows] for m in teacher])
    assert_finite(case, [torch.ones_like(m) for m in student], [torch.ones_like(m) for m in teacher])


@ALL
def test_nan_is_not_hidden(case):
    for side in range(2):
        both = inputs(case)
        both = [[m.detach().clone() for m in both[0]], both[1]]
        both[side][0].view(-1)[0] = float("nan")
        assert case.loss(*both).isnan()


@ALL
def test_the_arguments_are_left_as_they_were(case):
    student, teacher = inputs(case)
    copies = [m.detach().clone() for m in student + teacher]
    case.loss(student, teacher).backward()
    assert all(m.detach().equal(copy) for m, copy in zip(student + teacher, copies, strict=True))


@ALL
def test_both_sides_on_one_device(case):
    student, teacher = inputs(case)
    with pytest.raises(ValueError, match=r"cpu.*meta"):
        case.loss(student, [m.to("meta") for m in teacher])


@ALL
def test_integers_are_refused(case):
    student, teacher = inputs(case)
    with pytest.raises(ValueError, match=r"float16, bfloat16, float32 or float64.*int64"):
        case.loss(student, [m.long() for m in teacher])


@ALL
def test_batches_of_other_sizes_are_refused(case):
    student, _ = inputs(case)
    _, teacher = inputs(case, 3)
    with pytest.raises(ValueError, match=r"\(4, .*\(3, "):
        case.loss(student, teacher)
