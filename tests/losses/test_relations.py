"""SP, NST, PKT and KDSVD: numbers by hand, plain formulas, limits, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from kd_det.losses import kdsvd_loss, nst_loss, pkt_loss, sp_loss
from tests.losses.cases import random_maps
from tests.losses.test_multi_level import assert_same_value_and_gradient

MAP_LOSSES = pytest.mark.parametrize("loss", [sp_loss, nst_loss, kdsvd_loss])


def leaves(*sizes, **settings):
    return [m.requires_grad_() for m in random_maps(*sizes, **settings)]


def unit(row):
    norm = sum(x * x for x in row) ** 0.5
    return [x / norm for x in row]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def sp_by_loops(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        matrices = []
        for samples in (s.flatten(1), t.flatten(1)):
            matrices.append([unit([(a * b).sum() for b in samples]) for a in samples])
        errors = [(a - b) ** 2 for rows in zip(*matrices, strict=True) for a, b in zip(*rows, strict=True)]
        total = total + sum(errors) / len(errors)
    return total


def test_sp_is_the_plain_formula():
    student = leaves((4, 3), (2, 2), batch=4)
    teacher = random_maps((5, 2), (1, 3), batch=4, channels=4, seed=1)
    assert_same_value_and_gradient(sp_loss(student, teacher), sp_by_loops(student, teacher), *student)


def test_sp_by_hand():
    """Rows (4, 2; 2, 2) and (1, 0; 0, 1), each over its length."""
    s = torch.tensor([[2.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1)
    t = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).view(2, 1, 1, 2)
    first, second = (1 - 2 / 5**0.5) ** 2 + 1 / 5, 0.5 + (1 - 0.5**0.5) ** 2
    assert sp_loss([s], [t]).item() == pytest.approx((first + second) / 4)


@pytest.mark.parametrize("scale", [1e-3, 1e12])
def test_sp_does_not_see_the_scale_nor_a_rotation_of_the_features(scale):
    student = leaves((4, 3), batch=5)
    rotation = torch.linalg.qr(torch.randn(36, 36, dtype=torch.float64)).Q
    turned = (scale * student[0].detach().flatten(1) @ rotation).view(5, 36, 1, 1)
    value = sp_loss(student, [turned])
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-25) and student[0].grad.abs().max() < 1e-13
    teacher = random_maps((4, 3), batch=5, seed=1)
    torch.testing.assert_close(sp_loss([scale * m for m in student], teacher), sp_loss(student, teacher))


def test_sp_of_samples_of_very_different_sizes_in_float32():
    """The row of a sample 1e-12 times the others' size is that of the sample at full size."""
    (s,), (t,) = random_maps((4, 3), batch=5), random_maps((4, 3), batch=5, seed=1)
    factors = torch.tensor([1.0, 1e-12, 1e12, 1.0, 3.0], dtype=torch.float64).view(5, 1, 1, 1)
    s = factors * s
    torch.testing.assert_close(sp_loss([s.float()], [t.float()]), sp_loss([s], [t]).float(), rtol=1e-4, atol=1e-7)


def test_sp_of_dead_samples():
    (s,), (t,) = leaves((4, 3), batch=3), random_maps((4, 3), batch=3, seed=1)
    dead = s * torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    value = sp_loss([dead], [t])
    value.backward()
    assert value.isfinite() and s.grad[0].any() and not s.grad[1].any()
    assert sp_loss([dead], [dead.detach()]).item() == pytest.approx(0, abs=1e-30)


def nst_by_loops(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for of_student, of_teacher in zip(s.flatten(2), t.flatten(2), strict=True):
            ours, theirs = ([unit(channel) for channel in z] for z in (of_student, of_teacher))

            def kernel(a, b):
                return sum(dot(x, y) ** 2 for x in a for y in b) / (len(a) * len(b))

            total = total + (kernel(ours, ours) + kernel(theirs, theirs) - 2 * kernel(ours, theirs)) / len(s)
    return total


def test_nst_is_the_plain_formula():
    sizes = [(3, 2), (2, 2)]
    student, teacher = leaves(*sizes), random_maps(*sizes, channels=4, seed=1)
    assert_same_value_and_gradient(nst_loss(student, teacher), nst_by_loops(student, teacher), *student)


def test_nst_pools_the_larger_map_whichever_side_and_way_it_is_larger():
    (s,), (t,) = leaves((8, 3)), random_maps((4, 6), channels=2, seed=1)
    pool = nn.AdaptiveAvgPool2d((4, 3))
    assert_same_value_and_gradient(nst_loss([s], [t]), nst_by_loops([pool(s)], [pool(t)]), s)


def test_nst_by_hand():
    """Channels (1, 0) and (0, 1) against (1, 1)/√2: kernels 1/2, 1 and 1/2."""
    s, t = torch.eye(2).view(1, 2, 1, 2), torch.ones(1, 1, 1, 2)
    assert nst_loss([s], [t]).item() == pytest.approx(0.5 + 1 - 2 * 0.5)


def test_nst_does_not_see_order_sign_size_and_copies_of_channels():
    (s,) = leaves((4, 3))
    moved = (torch.tensor([-2.0, 1e6, 0.1], dtype=torch.float64).view(3, 1, 1) * s.detach())[:, [2, 0, 1, 2, 0, 1]]
    value = nst_loss([s], [moved])
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14) and s.grad.abs().max() < 1e-14


def test_nst_of_dead_channels():
    (s,), (t,) = leaves((4, 3)), random_maps((4, 3), seed=1)
    dead = s * torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    value = nst_loss([dead], [t])
    value.backward()
    assert value.isfinite() and s.grad[:, 0].any() and not s.grad[:, 1].any()


def pkt_by_loops(s, t):
    sides = []
    for features in (s, t):
        samples = [row / ((row * row).sum() ** 0.5 + 1e-7) for row in features]
        kernel = [[((a * b).sum() + 1) / 2 for b in samples] for a in samples]
        sides.append([[value / sum(row) for value in row] for row in kernel])
    pairs = [pair for rows in zip(*sides, strict=True) for pair in zip(*rows, strict=True)]
    return sum(p * ((p + 1e-7) / (q + 1e-7)).log() for q, p in pairs) / len(pairs)


def features(batch=5, width=4, seed=0):
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pkt_is_the_plain_formula():
    s, t = features().requires_grad_(), features(width=7, seed=1)
    assert_same_value_and_gradient(pkt_loss(s, t), pkt_by_loops(s, t), s)


def test_pkt_by_hand():
    """Orthogonal student, parallel teacher: rows (2/3, 1/3) and (1/2, 1/2)."""
    s, t = torch.eye(2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    expected = 2 * (0.5 * math.log(0.75) + 0.5 * math.log(1.5)) / 4
    assert pkt_loss(s, t).item() == pytest.approx(expected, rel=1e-5)


def test_pkt_with_the_teachers_directions_is_0_and_pulls_nowhere():
    s = features().requires_grad_()
    value = pkt_loss(s, 7 * s.detach())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-8) and s.grad.abs().max() < 1e-7
    opposite = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    value = pkt_loss(opposite, torch.tensor([[1.0], [2.0]]))
    value.backward()
    assert value.isfinite() and opposite.grad.isfinite().all()


def kdsvd_by_eigenvectors(student, teacher, k):
    """By the eigenvectors of the smaller Gram matrix, sample by sample, and loops over the vectors."""

    def singular(matrix, n):
        """The first n right singular vectors and values of (H W, C)."""
        wide = matrix.shape[0] < matrix.shape[1]
        values, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
        values, vectors = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
        if wide:
            vectors = matrix.T @ vectors / values
        return vectors[:, :n].T, values[:n]

    total, batch = 0.0, len(student[0])
    for i in range(batch):
        before = None
        for s, t in zip(student, teacher, strict=True):
            theirs, strengths = singular(t[i].flatten(1).T, k)
            theirs = [vector * max(vector, key=abs).sign() for vector in theirs]
            ours, _ = singular(s[i].flatten(1).T, k + 3)
            now = []
            for vector, strength in zip(theirs, strengths / strengths.norm(), strict=True):
                best = max(ours, key=lambda own: abs(own.dot(vector).item()))
                now.append((best * best.detach().dot(vector).sign() * strength, vector * strength))
            for new, old in zip(now, before or [], strict=False):
                relations = [torch.exp(-((u[:, None] - v[None, :]) ** 2) / 8) for u, v in zip(new, old, strict=True)]
                total = total + (relations[0] - relations[1]).square().sum() / batch
            before = now
    return total


@pytest.mark.parametrize("k", [1, 2])
def test_kdsvd_is_the_plain_formula(k):
    """Levels with more positions than channels and with fewer, and maps of other sizes than the teacher's."""
    student = [leaves(size, channels=c, seed=c)[0] for size, c in [((4, 4), 6), ((2, 3), 9), ((3, 3), 5)]]
    teacher = [random_maps(size, channels=c, seed=1)[0] for size, c in [((3, 5), 6), ((3, 3), 9), ((4, 4), 5)]]
    actual, expected = kdsvd_loss(student, teacher, k), kdsvd_by_eigenvectors(student, teacher, k)
    assert_same_value_and_gradient(actual, expected, *student)


def test_kdsvd_by_hand():
    """One position: the vector is the normalised map itself. (1, 0) and (0, 1) in the student, equal in the teacher."""
    student = [torch.tensor(values).view(1, 2, 1, 1) for values in ([3.0, 0.0], [0.0, 2.0])]
    teacher = [torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)] * 2
    near = math.exp(-1 / 8)
    # The differences of a student's entries: (0 − 1, 0 − 0; 1 − 1, 1 − 0). The teacher's are all 0.
    assert kdsvd_loss(student, teacher).item() == pytest.approx(2 * (1 - near) ** 2)


def test_kdsvd_does_not_see_the_signs_of_the_maps():
    """A map and its negative have the same singular vectors but for the signs, which are arbitrary."""
    student, teacher = leaves((4, 4), (3, 3)), random_maps((4, 4), (3, 3), seed=1)
    turned = kdsvd_loss([student[0], -student[1]], [-teacher[0], teacher[1]])
    torch.testing.assert_close(turned, kdsvd_loss(student, teacher), rtol=1e-10, atol=0)


def test_kdsvd_of_the_teachers_maps_at_any_scale_is_0():
    student = [leaves(size, channels=c, seed=c)[0] for size, c in [((4, 4), 6), ((2, 3), 9)]]
    value = kdsvd_loss(student, [-20 * m.detach() for m in student])
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-20)
    assert all(m.grad.abs().max() < 1e-10 for m in student)


def test_kdsvd_of_maps_of_low_rank_and_of_equal_singular_values():
    """Dead channels, one channel copied, zeros, an identity: vectors that no singular value tells apart."""
    (s,), (t,) = random_maps((4, 4), channels=6), random_maps((4, 4), channels=6, seed=1)
    identity = torch.eye(16, dtype=torch.float64)[:, :6].T.reshape(1, 6, 4, 4).repeat(2, 1, 1, 1)
    for odd in (s * (torch.arange(6) < 2).view(6, 1, 1), s[:, :1].repeat(1, 6, 1, 1), 0 * s, identity):
        for ours, theirs in ((odd, t), (s, odd), (odd, odd)):
            ours = ours.clone().requires_grad_()
            value = kdsvd_loss([ours, ours], [theirs, theirs], 2)
            value.backward()
            assert value.isfinite() and ours.grad.isfinite().all()
            assert ours.grad.norm() < 1e4


def test_kdsvd_has_first_derivatives_only():
    student, teacher = leaves((4, 4), (3, 3)), random_maps((4, 4), (3, 3), seed=1)
    (gradient, _) = torch.autograd.grad(kdsvd_loss(student, teacher), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@MAP_LOSSES
def test_levels_are_added_up(loss):
    student, teacher = random_maps((4, 4), (3, 3), (4, 2)), random_maps((4, 4), (3, 3), (4, 2), seed=1)
    parts = [loss(student[i : i + 2], teacher[i : i + 2]) for i in range(2)]
    middle = 0 if loss is kdsvd_loss else loss(student[1:2], teacher[1:2])
    torch.testing.assert_close(loss(student, teacher), parts[0] + parts[1] - middle)


@MAP_LOSSES
def test_bad_maps_are_named(loss):
    maps = random_maps((4, 4), (2, 2))
    cases = [
        (maps, maps[:1], "equal in number, and of one batch; got 2 maps, (2, 3, 4, 4) and (2, 3, 2, 2) and 1 map"),
        (maps, random_maps((4, 4), (2, 2), batch=1), "equal in number, and of one batch"),
        ([maps[0], maps[1][:1]], [maps[0], maps[1][:1]], "equal in number, and of one batch"),
        ([], maps, "student_maps must be"),
        (maps[0], maps, "student_maps must be a list"),
        (maps, [m.long() for m in maps], "teacher_maps must be float16"),
        (maps, [maps[0], maps[1].to("meta")], "student_maps[1] is on cpu, teacher_maps[1] on meta"),
    ]
    for student, teacher, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            loss(student, teacher)


def test_what_kdsvd_needs_besides():
    maps = random_maps((4, 4), (2, 2))
    others = random_maps((4, 4), (2, 2), channels=5)
    cases = [
        (maps[:1], maps[:1], 1, "two levels or more, each with one number of channels; got 1 map, (2, 3, 4, 4)"),
        (maps, others, 1, "got 2 maps, (2, 3, 4, 4) and (2, 3, 2, 2) and 2 maps, (2, 5, 4, 4) and (2, 5, 2, 2)"),
        (maps, maps, 0, "k must be from 1 to 3, the channels or positions of a teacher's map; got 0"),
        (maps, maps, 4, "k must be from 1 to 3"),
    ]
    for student, teacher, k, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            kdsvd_loss(student, teacher, k)


def test_pkt_names_bad_features():
    s = features()
    with pytest.raises(ValueError, match=re.escape("with the same B and D of 1 or more; got (5, 4)")):
        pkt_loss(s, s.view(5, 4, 1, 1))
