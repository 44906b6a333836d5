"""Relational distillation: numbers by hand, formulas by loops, and samples that coincide."""

from __future__ import annotations

import math
import re

import pytest
import torch

from kd_det.losses import rkd_angle_loss, rkd_distance_loss

LOSSES = pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])


def features(batch=5, width=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, generator=generator, dtype=torch.float64).to(dtype)


def huber(difference):
    size = abs(difference)
    return 0.5 * difference**2 if size < 1 else size - 0.5


def distance_by_loops(s, t):
    size = range(len(s))

    def relative(x):
        lengths = {(i, j): ((x[i] - x[j]) ** 2).sum() ** 0.5 for i in size for j in size if i != j}
        mean = sum(lengths.values()) / len(lengths)
        return {pair: length / mean for pair, length in lengths.items()}

    ours, theirs = relative(s), relative(t)
    return sum(huber(ours[pair] - theirs[pair]) for pair in ours) / len(s) ** 2


def angle_by_loops(s, t):
    size = range(len(s))

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return (a * b).sum() / ((a * a).sum() ** 0.5 * (b * b).sum() ** 0.5)

    triples = [(i, j, k) for i in size for j in size for k in size if j not in (i, k)]
    return sum(huber(cosine(s, *triple) - cosine(t, *triple)) for triple in triples) / len(s) ** 3


BY_LOOPS = pytest.mark.parametrize(
    ("loss", "by_loops"), [(rkd_distance_loss, distance_by_loops), (rkd_angle_loss, angle_by_loops)]
)


@BY_LOOPS
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_value_and_gradient_are_those_of_the_plain_formula(loss, by_loops, scale):
    """At 40 times the size in one feature, some pairs are far enough for the Huber loss's straight part."""
    s, t = features(), features(width=7, seed=1)
    s[0] *= scale
    s.requires_grad_()
    actual, expected = loss(s, t), by_loops(s, t)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    (ours,), (theirs,) = (torch.autograd.grad(value, s) for value in (actual, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


def test_distances_by_hand():
    """On a line at 0, 1, 3: distances 1, 2, 3 of mean 2; equidistant ones are all 1. Differences 1/2, 0, 1/2."""
    s = torch.tensor([[0.0], [1.0], [3.0]])
    t = 5 * torch.eye(3)
    assert rkd_distance_loss(s, t).item() == pytest.approx(2 * (0.125 + 0 + 0.125) / 9, rel=1e-6)


def test_angles_by_hand():
    """A right isosceles triangle against an equilateral one: cosines 0, √½, √½ against ½, each of two triples."""
    s = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    t = torch.eye(3)
    expected = 2 * (0.5 * 0.5**2 + 2 * 0.5 * (math.sqrt(0.5) - 0.5) ** 2) / 27
    assert rkd_angle_loss(s, t).item() == pytest.approx(expected, rel=1e-5)


@LOSSES
def test_shift_and_scale_do_not_count(loss):
    s, t = features(), features(width=7, seed=1)
    torch.testing.assert_close(loss(3 * s + 100, t), loss(s, 0.01 * t - 5), rtol=1e-9, atol=0)
    assert loss(s, 2 * s + 1).item() == pytest.approx(0, abs=1e-25)


@LOSSES
def test_a_sample_twice_gives_finite_gradients(loss):
    """On one side, on both, and all samples at once."""
    s, t = features(), features(seed=1)
    double_s, double_t = s[[0, 0, 1, 2, 3]], t[[0, 0, 1, 2, 3]]
    for ours, theirs in ((double_s, t), (s, double_t), (double_s, double_t), (s[[0] * 5], t), (s, t[[0] * 5])):
        ours = ours.clone().requires_grad_()
        value = loss(ours, theirs)
        value.backward()
        assert value.isfinite() and ours.grad.isfinite().all()
    assert loss(double_s, double_s * 2).item() == pytest.approx(0, abs=1e-25)


@LOSSES
@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-12, 1e-30])
def test_samples_that_almost_coincide_do_not_blow_up_the_gradient(loss, spread):
    s = (spread * features()).requires_grad_()
    loss(s, features(seed=1)).backward()
    assert s.grad.norm() < 1e4


@LOSSES
def test_any_magnitude_in_float32(loss):
    s, t = features(dtype=torch.float32), features(seed=1, dtype=torch.float32)
    torch.testing.assert_close(loss(1e14 * s, t), loss(s, t), rtol=1e-5, atol=0)
    huge = (1e38 * s).requires_grad_()
    value = loss(huge, t)
    value.backward()
    assert value.isfinite() and huge.grad.isfinite().all()


@LOSSES
def test_near_samples_far_from_the_origin_keep_their_differences(loss):
    """By scalar products, 1e3² + ... would leave float32 nothing of differences of 1e-2."""
    s, t = 1000 + (features() * 0.05).float().double(), features(seed=1)
    s = s.float()
    torch.testing.assert_close(loss(s, t.float()), loss(s.double(), t).float(), rtol=1e-4, atol=0)


@LOSSES
@pytest.mark.parametrize("batch", [0, 1])
def test_no_relation_is_a_zero_that_keeps_the_graph(loss, batch):
    s = features(batch).requires_grad_()
    value = loss(s, features(batch, 7))
    value.backward()
    assert value == 0
    assert s.grad.shape == (batch, 4) and not s.grad.any()


@LOSSES
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_half_precision_and_autocast_are_computed_in_float32(loss, dtypes):
    s, t = features(dtype=dtypes[0]), features(width=7, seed=1, dtype=dtypes[1])
    expected = loss(s.float(), t.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(s, t).equal(expected)
        assert loss(s.float(), t.float()).equal(expected)
    assert expected.dtype == torch.float32
    assert loss(s, t.double()).dtype == torch.float64


@LOSSES
def test_the_teacher_gets_no_gradient(loss):
    s, t = features().requires_grad_(), features(seed=1).requires_grad_()
    loss(s, t).backward()
    assert s.grad.any() and t.grad is None


@LOSSES
def test_bad_arguments_are_named(loss):
    s = features()
    cases = [
        (s, features(4), "must both be (B, D), with the same B and D of 1 or more; got (5, 4) and (4, 4)"),
        (s, s[:, :0], "got (5, 4) and (5, 0)"),
        (s.view(5, 4, 1, 1), s, "got (5, 4, 1, 1) and (5, 4)"),
        (s, s.long(), "got torch.float64 and torch.int64 (teacher)"),
        (s, s.to("meta"), "student_features are on cpu, teacher_features on meta"),
    ]
    for student, teacher, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            loss(student, teacher)
