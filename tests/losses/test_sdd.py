from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_det.losses import dkd_loss, kd_loss, nkd_loss, sdd_loss
from tests.losses.cases import examples, logit_pairs
from tests.losses.reference import dkd_by_loops, kd_by_loops, nkd_by_loops

DKD = {"alpha": 0.7, "beta": 3.0, "temperature": 2.0}
NKD = {"gamma": 0.7, "temperature": 2.0}


def kd_of_rows(s, t, y, **settings):
    return kd_by_loops(s, t, **settings)


BASES = pytest.mark.parametrize(
    ("base", "by_loops", "settings"),
    [
        pytest.param(kd_loss, kd_of_rows, {"temperature": 2.0}, id="kd"),
        pytest.param(dkd_loss, dkd_by_loops, DKD, id="dkd"),
        pytest.param(nkd_loss, nkd_by_loops, NKD, id="nkd"),
    ],
)


def batch(batch_size=6, classes=4, regions=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s, t = 3 * torch.randn(2, batch_size, classes, regions, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (batch_size,), generator=generator)
    return s.to(dtype).requires_grad_(), t.to(dtype), y


def sdd_by_loops(s, t, y, by_loops, weight, settings):
    total = 0.0
    for sample in range(len(s)):
        says = [row.index(max(row)) == int(y[sample]) for row in t[sample].T.tolist()]
        for region, right in enumerate(says):
            one = slice(sample, sample + 1)
            (loss,) = by_loops(s[one, :, region], t[one, :, region], y[one], **settings)
            total += loss * (weight if right != says[0] else 1.0)
    return total / (s.shape[0] * s.shape[2])


@BASES
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0, 3.7])
def test_equals_loops_over_samples_and_regions(base, by_loops, settings, weight):
    s, t, y = batch(20)
    loss = sdd_loss(s, t, y, base=base, complementary_weight=weight, **settings)
    assert loss.item() == pytest.approx(sdd_by_loops(s, t, y, by_loops, weight, settings), rel=1e-10)


def test_by_hand():
    """Sample 0: the teacher is right about the whole, regions 1 and 3, and wrong about 2. Sample 1: it is wrong about
    the whole and regions 1 and 3, right about 2. So region 2 counts twice in both. The losses are 1, 2, 3, 4 and 5, 6,
    7, 8: (36 + 3 + 7) / 8.
    """
    says = torch.tensor([[0, 0, 1, 0], [1, 2, 0, 1]])
    t = torch.nn.functional.one_hot(says, 3).transpose(1, 2).float()
    s = torch.arange(1.0, 9.0).view(2, 1, 4).expand(2, 3, 4)
    loss = sdd_loss(s, t, torch.tensor([0, 0]), base=lambda s, t, reduction: s[:, 0])
    assert loss.item() == pytest.approx(46 / 8)


def test_defaults_are_dkd_and_2():
    s, t, y = batch()
    loss = sdd_loss(s, t, y)
    assert loss == sdd_loss(s, t, y, base=dkd_loss, complementary_weight=2.0, alpha=1.0, beta=8.0, temperature=4.0)
    assert loss != sdd_loss(s, t, y, complementary_weight=1.0)


@BASES
def test_one_region_is_the_base_loss(base, by_loops, settings):
    s, t, y = batch(regions=1)
    expected = sum(by_loops(s[..., 0], t[..., 0], y, **settings)) / len(s)
    assert sdd_loss(s, t, y, base=base, complementary_weight=9.0, **settings).item() == pytest.approx(expected)


@examples
@given(logit_pairs(), st.permutations(range(3)))
def test_the_order_of_the_parts_does_not_matter(case, order):
    s, t, y = case
    generator = torch.Generator().manual_seed(0)
    s_parts, t_parts = torch.randn(2, *s.shape, 3, generator=generator, dtype=torch.float64)
    losses = [
        sdd_loss(*(torch.cat((z.unsqueeze(2), parts), 2) for z, parts in ((s, s_p), (t, t_p))), y)
        for s_p, t_p in ((s_parts, t_parts), (s_parts[..., order], t_parts[..., order]))
    ]
    torch.testing.assert_close(*losses, rtol=1e-11, atol=0)


@BASES
def test_gradient_is_that_of_the_value(base, by_loops, settings):
    s, t, y = batch(3)
    assert torch.autograd.gradcheck(lambda s: sdd_loss(s, t, y, base=base, **settings), s)


def test_the_teacher_gets_no_gradient():
    s, t, y = batch()
    t.requires_grad_()
    # A base that does not detach the teacher itself.
    sdd_loss(s, t, y, base=lambda s, t, y, reduction: (s - t).square().sum(1)).backward()
    assert s.grad.any()
    assert t.grad is None


@pytest.mark.parametrize(
    ("base", "calls"),
    [
        (lambda s, t, reduction: s[:, 0], 2),
        (lambda s, t, temperature=4.0, reduction="mean": s[:, 0], 2),
        (lambda s, t, temperature, reduction: s[:, 0] + temperature - 4.0, 2),
        (lambda s, t, *, y=None, reduction: s[:, 0], 2),
        (lambda s, t, labels, reduction: s[:, 0] + labels, 3),
        (lambda s, t, labels, /, reduction: s[:, 0] + labels, 3),
        (partial(lambda weight, s, t, labels, reduction: weight * s[:, 0] + labels, 1.0), 3),
        (lambda *rows, reduction: rows[0][:, 0] + rows[2], 3),
    ],
)
def test_labels_go_to_a_base_that_must_have_them(base, calls):
    s, t, y = batch()
    y = torch.full_like(y, 2)
    with_labels = 2.0 if calls == 3 else 0.0
    settings = {"temperature": 4.0} if "temperature" in inspect.signature(base).parameters else {}
    loss = sdd_loss(s, t, y, base=base, complementary_weight=1.0, **settings)
    assert loss.item() == pytest.approx(s[:, 0].mean().item() + with_labels)


def test_each_region_has_its_samples_label():
    s, t, _ = batch(3, regions=2)
    y = torch.tensor([0, 1, 2])
    seen = []

    def base(s, t, y, *, reduction):
        seen.append((s.detach(), t, y, reduction))
        return s[:, 0]

    sdd_loss(s, t, y, base=base)
    ((rows, t_rows, labels, reduction),) = seen
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert reduction == "none"
    for row, (sample, region) in enumerate((b, n) for b in range(3) for n in range(2)):
        assert rows[row].equal(s[sample, :, region])
        assert t_rows[row].equal(t[sample, :, region])


@BASES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_widen_to_float32(base, by_loops, settings, dtype):
    s, t, y = batch(dtype=dtype)
    loss = sdd_loss(s, t, y, base=base, **settings)
    loss.backward()
    assert (loss.dtype, s.grad.dtype) == (torch.float32, dtype)
    assert loss == sdd_loss(s.float(), t.float(), y, base=base, **settings)


@BASES
def test_an_empty_batch_gives_a_zero_that_keeps_the_graph(base, by_loops, settings):
    s, t, y = batch(0)
    loss = sdd_loss(s, t, y, base=base, **settings)
    assert loss == 0
    loss.backward()
    assert s.grad.shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("s_shape", "t_shape"),
    [((6, 4, 5), (6, 4, 4)), ((6, 4, 5), (5, 4, 5)), ((6, 4), (6, 4)), ((6, 1, 5), (6, 1, 5)), ((6, 4, 0), (6, 4, 0))],
)
def test_invalid_shapes(s_shape, t_shape):
    with pytest.raises(ValueError, match=r"must both be \(B, C, N\)") as caught:
        sdd_loss(torch.zeros(s_shape), torch.zeros(t_shape), torch.zeros(6, dtype=torch.int64))
    assert str(s_shape) in str(caught.value)
    assert str(t_shape) in str(caught.value)


def test_logits_on_two_devices():
    with pytest.raises(ValueError, match="student_logits are on cpu, teacher_logits on meta"):
        sdd_loss(torch.zeros(4, 5, 2), torch.zeros(4, 5, 2, device="meta"), torch.zeros(4, dtype=torch.int64))


@BASES
@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range(base, by_loops, settings, label):
    """A base that looks at no labels does not let them pass either."""
    s, t, y = batch()
    y[3] = label
    with pytest.raises(ValueError, match=f"labels must be from 0 to 3; got {label}"):
        sdd_loss(s, t, y, base=base, **settings)


@BASES
@pytest.mark.parametrize("y", [torch.zeros(6), torch.zeros(5, dtype=torch.int64), torch.zeros(6, 5, dtype=torch.int64)])
def test_labels_of_another_kind(base, by_loops, settings, y):
    s, t, _ = batch()
    with pytest.raises(ValueError, match="labels must be"):
        sdd_loss(s, t, y, base=base, **settings)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_invalid_weights(weight):
    s, t, y = batch()
    with pytest.raises(ValueError, match=f"complementary_weight must be a finite number, 0 or more; got {weight}"):
        sdd_loss(s, t, y, complementary_weight=weight)


def test_a_reduction_is_refused():
    s, t, y = batch()
    with pytest.raises(ValueError, match="sdd_loss itself averages over samples and regions; leave out reduction"):
        sdd_loss(s, t, y, reduction="sum")


def test_a_setting_that_the_base_does_not_have():
    s, t, y = batch()
    with pytest.raises(TypeError, match="gamma"):
        sdd_loss(s, t, y, gamma=1.0)


def test_a_base_that_reduces_by_itself():
    s, t, y = batch()
    with pytest.raises(ValueError, match=r'one loss for each row, \(30,\), with reduction="none"; got \(\)'):
        sdd_loss(s, t, y, base=lambda s, t, y, reduction: s.sum())
