"""Properties that the losses on feature maps share, one test for all of them. Each loss also has its own file."""

from __future__ import annotations

import re

import pytest
import torch

from kd_det.losses import fgfi_loss, fitnet_loss, hcl_loss, pkd_loss
from tests.losses.cases import random_maps


def fgfi(student, teacher):
    """Every other position masked, whatever the maps are."""
    return fgfi_loss(student, teacher, [every_other(m) for m in student])


def every_other(feature_map):
    size = (len(feature_map), *feature_map.shape[-2:])
    return (torch.arange(size[0] * size[1] * size[2]) % 2 == 0).view(size)


LOSSES = pytest.mark.parametrize("loss", [hcl_loss, fitnet_loss, fgfi, pkd_loss])
# 1 × 1 levels, maps that are not square, and maps narrower or lower than 4.
SIZES = [(9, 7), (8, 3), (2, 6), (1, 5), (1, 1)]


def pair(*sizes, **settings):
    student, teacher = (random_maps(*sizes, seed=seed, **settings) for seed in (0, 1))
    return [m.requires_grad_() for m in student], teacher


def gradients(loss, student, teacher):
    student = [m.detach().requires_grad_() for m in student]
    value = loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, student)


@LOSSES
def test_gradient_is_that_of_the_value(loss):
    student, teacher = pair((5, 6), (3, 2), (1, 1), channels=1)
    assert torch.autograd.gradcheck(lambda *maps: loss(maps, teacher), student)


@LOSSES
@pytest.mark.parametrize("batch", [1, 2])
def test_every_size_gives_a_finite_loss_and_gradients(loss, batch):
    for size in (*SIZES, (4, 4), (3, 20)):
        value, (gradient,) = gradients(loss, *pair(size, batch=batch))
        assert value.shape == (), size
        assert value.isfinite(), size
        assert gradient.isfinite().all(), size


@LOSSES
def test_equal_maps_cost_nothing_and_pull_nowhere(loss):
    student, _ = pair(*SIZES)
    value, grads = gradients(loss, student, [m.detach().clone() for m in student])
    assert value == 0
    assert all(grad.abs().max() < 1e-15 for grad in grads)


@LOSSES
def test_height_and_width_count_alike(loss):
    sizes = [(9, 7), (8, 3), (2, 6)]
    student, teacher = pair(*sizes)
    if loss is fgfi:
        masks = [every_other(m) for m in student]
        turned_masks = [mask.transpose(1, 2) for mask in masks]
        value = fgfi_loss(student, teacher, masks)
        turned = fgfi_loss([m.mT for m in student], [m.mT for m in teacher], turned_masks)
    else:
        value = loss(student, teacher)
        turned = loss([m.mT for m in student], [m.mT for m in teacher])
    torch.testing.assert_close(turned, value, rtol=1e-12, atol=0)


@LOSSES
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = pair(*SIZES)
    for m in teacher:
        m.requires_grad_()
    loss(student, teacher).backward()
    assert all(m.grad is None for m in teacher)
    assert student[0].grad.any()


@LOSSES
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_half_precision_is_computed_in_float32(loss, dtypes):
    """Values of 300 and more, whose squares float16 cannot hold."""
    student, teacher = pair(*SIZES)
    student, teacher = (
        [(300 * m.detach()).to(dtype) for m in maps] for maps, dtype in zip((student, teacher), dtypes, strict=True)
    )
    value, grads = gradients(loss, student, teacher)
    expected, expected_grads = gradients(loss, [m.float() for m in student], [m.float() for m in teacher])
    assert value.dtype == torch.float32
    assert value.equal(expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.equal(expected_grad.to(dtypes[0]))


@LOSSES
def test_autocast_changes_nothing(loss):
    student, teacher = ([m.detach().float() for m in maps] for maps in pair(*SIZES))
    expected, expected_grads = gradients(loss, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        value, grads = gradients(loss, student, teacher)
    assert value.equal(expected)
    assert all(a.equal(b) for a, b in zip(grads, expected_grads, strict=True))


@LOSSES
def test_float64_stays_float64(loss):
    student, teacher = pair((5, 5))
    assert loss([m.float() for m in student], teacher).dtype == torch.float64


@LOSSES
def test_an_empty_batch_gives_a_zero_that_keeps_the_graph(loss):
    student, teacher = pair(*SIZES, batch=0)
    value = loss(student, teacher)
    assert value == 0
    value.backward()
    assert student[0].grad.shape == (0, 3, 9, 7)


@LOSSES
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(8, 8), (4, 4)], [(8, 8)]),
        ([(8, 8)], [(8, 8), (4, 4)]),
        ([(8, 8), (4, 4)], [(4, 4), (8, 8)]),
        ([(8, 8)], [(8, 4)]),
    ],
)
def test_other_levels_than_the_teachers_name_both_sides(loss, student, teacher):
    with pytest.raises(ValueError, match="must have the same shapes, level by level") as caught:
        loss(random_maps(*student), random_maps(*teacher))
    for size in (*student, *teacher):
        assert str((2, 3, *size)) in str(caught.value)


@LOSSES
@pytest.mark.parametrize("settings", [{"channels": 4}, {"batch": 1}])
def test_other_channels_or_images_than_the_teachers(loss, settings):
    with pytest.raises(ValueError, match=r"got 1 map, \(2, 3, 8, 8\) and 1 map, .*Adapt the student's channels"):
        loss(random_maps((8, 8)), random_maps((8, 8), **settings))


@LOSSES
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_arguments_that_are_not_lists_of_maps(loss, side):
    good = random_maps((8, 8))
    bad = [
        ([], "got 0 maps"),
        (good[0], "got one tensor (2, 3, 8, 8)"),
        ([good[0][0]], "(3, 8, 8)"),
        ([good[0][:, :, :0]], "(2, 3, 0, 8)"),
        ([good[0].long()], "torch.int64"),
    ]
    for maps, words in bad:
        with pytest.raises(ValueError, match=f"{side}_maps must be.*{re.escape(words)}"):
            loss(maps, good) if side == "student" else loss(good, maps)


@LOSSES
def test_maps_on_two_devices(loss):
    student, teacher = pair((8, 8), (4, 4))
    teacher[1] = teacher[1].to("meta")
    with pytest.raises(ValueError, match=r"student_maps\[1\] is on cpu, teacher_maps\[1\] on meta"):
        loss(student, teacher)


def test_fitnet_by_hand():
    """(1 + 4) / 2 on the first level, 9 on the second, and their mean."""
    student = [torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([3.0]).view(1, 1, 1, 1)]
    teacher = [torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)]
    assert fitnet_loss(student, teacher).item() == pytest.approx((2.5 + 9) / 2)


def test_fitnets_large_level_counts_no_more_than_a_small_one():
    student, teacher = (random_maps((20, 30), (2, 3), seed=seed) for seed in (0, 1))
    each = [(s - t).pow(2).mean() for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(fitnet_loss(student, teacher), (each[0] + each[1]) / 2, rtol=1e-12, atol=0)
