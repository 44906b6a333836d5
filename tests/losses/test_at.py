"""Attention transfer: values by hand, an independent formula, and invariances."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from kd_det.losses import at_loss
from tests.losses.cases import random_maps

SIZES = [(8, 6), (5, 3), (1, 1)]


def naive(student, teacher, power):
    """By Python loops over images and positions, for maps of equal sizes."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        squares = []
        for of_student, of_teacher in zip(s, t, strict=True):
            attentions = []
            for image in (of_student, of_teacher):
                height, width = image.shape[1:]
                sums = [(image[:, i, j].abs() ** power).sum() for i in range(height) for j in range(width)]
                norm = sum(value**2 for value in sums) ** 0.5
                attentions.append([value / norm for value in sums])
            squares += [(a - b) ** 2 for a, b in zip(*attentions, strict=True)]
        total = total + sum(squares) / len(squares)
    return total


def leaves(*sizes, **settings):
    return [m.requires_grad_() for m in random_maps(*sizes, **settings)]


def test_by_hand():
    """Attentions (9, 16) and (1, 0): (0.49, 0.87) less (1, 0), squared and averaged."""
    s = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    t = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    norm = math.hypot(9, 16)
    expected = ((9 / norm - 1) ** 2 + (16 / norm) ** 2) / 2
    assert at_loss([s], [t]).item() == pytest.approx(expected, rel=1e-6)
    assert at_loss([s, s], [t, t]).item() == pytest.approx(2 * expected, rel=1e-6)


@pytest.mark.parametrize("power", [1, 2, 4.5])
def test_value_and_gradient_are_those_of_the_plain_formula(power):
    sizes = [(4, 3), (2, 3), (1, 1)]
    student, teacher = leaves(*sizes), random_maps(*sizes, seed=1, channels=5)
    actual, expected = at_loss(student, teacher, power=power), naive(student, teacher, power)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(actual, student), torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_the_larger_map_is_pooled_whichever_side_and_way_it_is_larger():
    (s,), (t,) = leaves((8, 3)), random_maps((4, 6), seed=1)
    pool = nn.AdaptiveAvgPool2d((4, 3))
    expected = naive([pool(s)], [pool(t)], 2)
    torch.testing.assert_close(at_loss([s], [t]), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(at_loss([t], [s.detach()]), expected.detach(), rtol=1e-12, atol=0)


def test_scale_sign_and_copied_channels_do_not_count():
    student, teacher = random_maps(*SIZES), random_maps(*SIZES, seed=1)
    expected = at_loss(student, teacher)
    for moved in ([-7 * m for m in teacher], [m.repeat(1, 3, 1, 1) for m in teacher], [1e-3 * m for m in teacher]):
        torch.testing.assert_close(at_loss(student, moved), expected, rtol=1e-12, atol=0)
    assert at_loss(student, [2 * m for m in student]).item() == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("scale", [1e30, 1e-3])
def test_any_magnitude_in_float32(scale):
    """Where the squares of 1e30 would be infinite."""
    student, teacher = ([m.float() for m in maps] for maps in (random_maps(*SIZES), random_maps(*SIZES, seed=1)))
    large = [(scale * m).requires_grad_() for m in student]
    loss = at_loss(large, teacher)
    torch.testing.assert_close(loss, at_loss(student, teacher), rtol=1e-5, atol=0)
    loss.backward()
    assert all(m.grad.isfinite().all() for m in large)
    assert large[0].grad.any()


@pytest.mark.parametrize("value", [0.0, 1e-5, 1e-30])
def test_an_almost_zero_map_passes_no_gradient(value):
    (s,), (t,) = random_maps((4, 4)), random_maps((4, 4), seed=1)
    still = (value * s).requires_grad_()
    loss = at_loss([still], [t])
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert not still.grad.any()


def test_a_dead_map_of_the_teacher_and_dead_positions():
    (s,) = leaves((4, 4))
    loss = at_loss([s * (torch.arange(4) > 1)], [torch.zeros_like(s)])
    assert loss.item() == pytest.approx(1 / 16)
    loss.backward()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_half_precision_and_autocast_are_computed_in_float32(dtypes):
    student, teacher = ([(300 * m).to(d) for m in random_maps(*SIZES, seed=i)] for i, d in enumerate(dtypes))
    expected = at_loss([m.float() for m in student], [m.float() for m in teacher])
    with torch.autocast("cpu", torch.bfloat16):
        assert at_loss(student, teacher).equal(expected)
    assert expected.dtype == torch.float32
    assert at_loss(student, [m.double() for m in teacher]).dtype == torch.float64


def test_an_empty_batch_gives_a_zero_that_keeps_the_graph():
    student = leaves(*SIZES, batch=0)
    loss = at_loss(student, random_maps(*SIZES, batch=0))
    assert loss == 0
    loss.backward()
    assert student[0].grad.shape == (0, 3, 8, 6)


def test_the_teacher_gets_no_gradient():
    student, teacher = leaves(*SIZES), leaves(*SIZES, seed=1)
    at_loss(student, teacher).backward()
    assert student[0].grad.any()
    assert all(m.grad is None for m in teacher)


def test_bad_arguments_are_named():
    maps = random_maps((4, 4), (2, 2))
    cases = [
        (maps, maps[:1], {}, "equal in number, and of one batch; got 2 maps, (2, 3, 4, 4) and (2, 3, 2, 2) and 1 map"),
        (maps, random_maps((4, 4), (2, 2), batch=1), {}, "equal in number, and of one batch"),
        ([], maps, {}, "student_maps must be"),
        (maps, [m.long() for m in maps], {}, "teacher_maps must be float16"),
        (maps, [maps[0], maps[1].to("meta")], {}, "student_maps[1] is on cpu, teacher_maps[1] on meta"),
        (maps, maps, {"power": 0.5}, "power must be a finite number, 1 or more; got 0.5"),
        (maps, maps, {"power": math.nan}, "power must be"),
    ]
    for student, teacher, settings, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            at_loss(student, teacher, **settings)
