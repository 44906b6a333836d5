from __future__ import annotations

import pytest
import torch

from kd_det.losses import fgfi_loss
from tests.losses.cases import random_maps

SIZES = [(5, 7), (3, 4), (1, 1)]


def random_masks(maps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(len(m), *m.shape[2:], generator=generator) < 0.3 for m in maps]


def by_loops(student, teacher, masks):
    total, count = 0.0, 0
    for s, t, mask in zip(student, teacher, masks, strict=True):
        for image, row, column in mask.nonzero().tolist():
            difference = s[image, :, row, column] - t[image, :, row, column]
            total += float(difference.dot(difference))
            count += 1
    return total / (2 * count)


def test_by_hand():
    """Two positions are masked, one a level, with differences (1, 2) and (3, 0): (5 + 9) / (2 · 2)."""
    student = [
        torch.tensor([[1.0, 7.0], [2.0, 7.0]]).view(1, 2, 1, 2),
        torch.tensor([3.0, 0.0]).view(1, 2, 1, 1),
    ]
    teacher = [torch.zeros_like(m) for m in student]
    masks = [torch.tensor([[[True, False]]]), torch.tensor([[[True]]])]
    assert fgfi_loss(student, teacher, masks).item() == pytest.approx(14 / 4)


def test_equals_loops_over_the_positions():
    student, teacher = (random_maps(*SIZES, seed=seed) for seed in (0, 1))
    masks = random_masks(student)
    assert fgfi_loss(student, teacher, masks).item() == pytest.approx(by_loops(student, teacher, masks), rel=1e-12)


def test_only_masked_positions_are_pulled():
    student, teacher = (random_maps(*SIZES, seed=seed) for seed in (0, 1))
    masks = random_masks(student)
    for m in student:
        m.requires_grad_()
    fgfi_loss(student, teacher, masks).backward()
    positions = sum(int(mask.sum()) for mask in masks)
    for s, t, mask in zip(student, teacher, masks, strict=True):
        torch.testing.assert_close(s.grad, (s.detach() - t) * mask.unsqueeze(1) / positions)


def test_nothing_masked_gives_a_zero_that_keeps_the_graph():
    student, teacher = (random_maps(*SIZES, seed=seed) for seed in (0, 1))
    for m in student:
        m.requires_grad_()
    loss = fgfi_loss(student, teacher, [torch.zeros(2, *size, dtype=torch.bool) for size in SIZES])
    assert loss == 0
    loss.backward()
    assert all(not m.grad.any() for m in student)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_masked_does_not_matter(value):
    (s,), (t,) = random_maps((3, 3)), random_maps((3, 3), seed=1)
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[1, 2, 0] = False
    s[1, :, 2, 0] = value
    s.requires_grad_()
    loss = fgfi_loss([s], [t], [mask])
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


def test_masks_that_do_not_fit_name_both():
    maps = random_maps((5, 7), (3, 4))
    good = random_masks(maps)
    words = r"masks must be \(B, H, W\).*\(2, 3, 5, 7\) and \(2, 3, 3, 4\); got"
    for bad in (good[:1], [], good[::-1], [good[0], good[1].unsqueeze(1)], [good[0][:1], good[1]]):
        with pytest.raises(ValueError, match=words) as caught:
            fgfi_loss(maps, maps, bad)
        for mask in bad:
            assert str(tuple(mask.shape)) in str(caught.value)


def test_masks_of_another_dtype_or_device():
    maps = random_maps((5, 7))
    (mask,) = random_masks(maps)
    for bad, words in ((mask.float(), "torch.float32 on cpu"), (mask.to("meta"), "torch.bool on meta")):
        with pytest.raises(ValueError, match=f"masks must be bool, on the device of the maps, cpu; got {words}"):
            fgfi_loss(maps, maps, [bad])
