"""DIST, MLKD, CTKD and CAT-KD: numbers by hand, plain formulas, limits, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from kd_det.losses import (
    catkd_loss,
    class_activation_maps,
    ctkd_loss,
    ctkd_reversal,
    dist_loss,
    kd_loss,
    mlkd_loss,
    textbook,
)

LOGIT_LOSSES = pytest.mark.parametrize(
    "loss", [dist_loss, mlkd_loss, lambda s, t: ctkd_loss(s, t, torch.tensor(0.3), reversal=1.0)],
    ids=["dist", "mlkd", "ctkd"],
)


def logits(batch=6, classes=5, seed=0, size=2.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


def pair(**settings):
    return logits(**settings).requires_grad_(), logits(seed=1, **settings)


def assert_same_value_and_gradient(actual, expected, *inputs):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    pairs = zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def softmax(row, temperature):
    powers = [(z / temperature).exp() for z in row]
    return [power / sum(powers) for power in powers]


def one_minus_pearson(a, b):
    a, b = ([x - sum(row) / len(row) for x in row] for row in (a, b))
    norms = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
    return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (norms + 1e-8)


def dist_by_loops(s, t, inter_weight, intra_weight, temperature):
    q, p = ([softmax(row, temperature) for row in z] for z in (s, t))
    rows = [one_minus_pearson(a, b) for a, b in zip(q, p, strict=True)]
    columns = [one_minus_pearson(a, b) for a, b in zip(zip(*q, strict=True), zip(*p, strict=True), strict=True)]
    return temperature**2 * (inter_weight * sum(rows) / len(rows) + intra_weight * sum(columns) / len(columns))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("settings", [(1.0, 1.0, 1.0), (2.0, 0.3, 4.0), (0.0, 1.0, 0.5)])
def test_dist_is_the_plain_formula(classes, settings):
    s, t = pair(classes=classes)
    inter, intra, temperature = settings
    actual = dist_loss(s, t, inter_weight=inter, intra_weight=intra, temperature=temperature)
    assert_same_value_and_gradient(actual, dist_by_loops(s, t, *settings), s)


def test_dist_by_hand():
    """Both rows reversed: r is −1 for each sample, and for each class."""
    s = torch.tensor([[3.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    assert dist_loss(s, -s).item() == pytest.approx(4, abs=1e-6)
    assert dist_loss(s, -s, inter_weight=0.5, intra_weight=0.25, temperature=2).item() == pytest.approx(6, abs=1e-5)


def test_dist_with_the_teachers_logits_is_0_but_for_the_added_eps():
    s, _ = pair()
    value = dist_loss(s, s.detach() + 7)
    assert value.item() == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(value, s)
    assert gradient.abs().max() < 1e-5


def test_dist_does_not_see_a_linear_change_of_the_probabilities():
    """Probabilities half way to the uniform ones correlate fully with the teacher's."""
    t = logits(seed=1)
    s = (0.5 * t.softmax(1) + 0.5 / 5).log().requires_grad_()
    value = dist_loss(s, t)
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert torch.autograd.grad(value, s)[0].abs().max() < 1e-5


def test_dist_passes_no_gradient_through_nearly_equal_logits_and_alike_samples():
    s, t = pair()
    still = (1e-6 * s.detach()).requires_grad_()
    dist_loss(still, t).backward()
    assert not still.grad.any()
    alike = (s.detach()[:1] + 1e-6 * s.detach()).requires_grad_()
    dist_loss(alike, t, inter_weight=0.0).backward()
    assert not alike.grad.any()


def test_dist_of_one_sample_has_no_correlation_between_samples():
    s, t = pair(batch=1)
    assert dist_loss(s, t, inter_weight=0.0) == 1


def mlkd_by_loops(s, t, temperatures):
    total = 0.0
    batch, classes = s.shape
    for temperature in temperatures:
        q, p = ([softmax(row, temperature) for row in z] for z in (s, t))
        total = total + textbook.kd(s, t, temperature=temperature).mean()
        for i in range(batch):
            for j in range(batch):
                ours, theirs = (sum(z[i][c] * z[j][c] for c in range(classes)) for z in (q, p))
                total = total + (ours - theirs) ** 2 / batch
        for c in range(classes):
            for d in range(classes):
                ours, theirs = (sum(row[c] * row[d] for row in z) for z in (q, p))
                total = total + (ours - theirs) ** 2 / classes
    return total


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("temperatures", [(2, 3, 4, 5, 6), (0.5,), [1.0, 4.0]])
def test_mlkd_is_the_plain_formula(classes, temperatures):
    s, t = pair(batch=3, classes=classes)
    actual = mlkd_loss(s, t, temperatures=temperatures)
    assert_same_value_and_gradient(actual, mlkd_by_loops(s, t, temperatures), s)


def test_mlkd_by_hand():
    """One-hot predictions, the student's of one class, the teacher's of two: relations of ones, and the identity."""
    s = torch.tensor([[2000.0, 0.0], [2000.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([[2000.0, 0.0], [0.0, 2000.0]], dtype=torch.float64)
    samples, classes = 2 / 2, (1 + 1) / 2
    assert (mlkd_loss(s, t, temperatures=[1]) - kd_loss(s, t, temperature=1)).item() == pytest.approx(samples + classes)


@LOGIT_LOSSES
def test_a_shift_of_all_logits_changes_nothing(loss):
    s, t = pair()
    torch.testing.assert_close(loss(s + 40, t - 1e3), loss(s, t), rtol=1e-10, atol=0)


@LOGIT_LOSSES
def test_logits_of_1e4_are_as_in_float64(loss):
    s, t = pair(size=1e4)
    s, t = s.detach().float(), t.float()
    torch.testing.assert_close(loss(s, t).double(), loss(s.double(), t.double()), rtol=1e-5, atol=1e-4)
    assert loss(s, s).item() == pytest.approx(0, abs=2.1)  # DIST counts a class of no sample as uncorrelated.


def test_mlkd_and_ctkd_of_equal_logits_are_0_and_pull_nowhere():
    for loss in (mlkd_loss, lambda s, t: ctkd_loss(s, t, torch.tensor(0.3), reversal=1.0)):
        s, _ = pair()
        value = loss(s, s.detach())
        value.backward()
        assert value == 0 and s.grad.abs().max() < 1e-15


@pytest.mark.parametrize("theta", [-30.0, -0.5, 0.0, 1.0, 40.0])
def test_ctkd_is_kd_at_its_temperature(theta):
    s, t = pair()
    parameter = nn.Parameter(torch.tensor([theta], dtype=torch.float64))
    actual = ctkd_loss(s, t, parameter, reversal=1.0, start=2, span=10)
    temperature = 2 + 10 / (1 + math.exp(-theta))
    assert_same_value_and_gradient(actual, kd_loss(s, t, temperature=temperature), s)


@pytest.mark.parametrize("reversal", [0.0, 0.3, 1.0])
def test_ctkds_temperature_gets_the_reversed_gradient_of_the_loss(reversal):
    s, t = pair()
    theta = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad(ctkd_loss(s, t, theta, reversal=reversal), theta)

    def at(value):
        return textbook.kd(s.detach(), t, temperature=1 + 20 / (1 + math.exp(-value))).mean().item()

    slope = (at(0.4 + 1e-5) - at(0.4 - 1e-5)) / 2e-5
    assert actual.item() == pytest.approx(-reversal * slope, rel=1e-6)


def test_an_optimiser_that_lowers_the_loss_raises_it_by_the_temperature():
    s, t = pair()
    theta = nn.Parameter(torch.tensor(0.0))
    optimizer = torch.optim.SGD([theta], lr=1.0)
    before = ctkd_loss(s, t, theta, reversal=1.0)
    before.backward()
    optimizer.step()
    assert ctkd_loss(s, t, theta, reversal=1.0) > before


def test_ctkds_curriculum():
    assert [ctkd_reversal(epoch) for epoch in (0, 10, 11, 500)] == [0, 1, 1, 1]
    assert ctkd_reversal(5) == pytest.approx(0.5)
    assert ctkd_reversal(1) == pytest.approx((1 - math.cos(math.pi / 10)) / 2)
    assert ctkd_reversal(5, epochs=20, maximum=2) == pytest.approx(1 - math.sqrt(0.5))
    values = [ctkd_reversal(epoch / 4) for epoch in range(44)]
    assert values == sorted(values)


def cams(side=(4, 6), seed=0, batch=2, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, classes, *side, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("normalize", [True, False])
def test_catkd_is_the_plain_formula(normalize):
    """Maps of 4 × 6 and 2 × 4, whose halves are blocks."""
    s, t = cams().requires_grad_(), cams((2, 4), seed=1)
    total = 0.0
    for of_student, of_teacher in zip(s.flatten(0, 1), t.flatten(0, 1), strict=True):
        blocks = []
        for image in (of_student, of_teacher):
            h, w = image.shape[0] // 2, image.shape[1] // 2
            block = [image[i * h : (i + 1) * h, j * w : (j + 1) * w].mean() for i in range(2) for j in range(2)]
            norm = sum(x * x for x in block) ** 0.5 if normalize else 1
            blocks.append([x / norm for x in block])
        total = total + sum((a - b) ** 2 for a, b in zip(*blocks, strict=True))
    actual = catkd_loss(s, t, normalize=normalize)
    assert_same_value_and_gradient(actual, total / (2 * 3 * 4), s)


def test_catkd_by_hand():
    """(3, 4) and (0, 1) over their lengths, 5 and 1: (0.6, −0.2) squared, over two positions."""
    s, t = torch.tensor([[[[3.0, 4.0], [0, 0]]]]), torch.tensor([[[[0.0, 1.0], [0, 0]]]])
    assert catkd_loss(s, t).item() == pytest.approx((0.36 + 0.04) / 4)
    assert catkd_loss(s, t, resolution=1, normalize=False).item() == pytest.approx((7 / 4 - 1 / 4) ** 2)
    assert catkd_loss(s, t, resolution=1).item() == 0


def test_catkd_does_not_see_a_positive_factor():
    s = cams().requires_grad_()
    factor = torch.rand(2, 3, 1, 1, dtype=torch.float64) + 0.5
    value = catkd_loss(s, factor * s.detach())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-30) and s.grad.abs().max() < 1e-15
    assert catkd_loss(s, -s.detach()).item() == pytest.approx(4 / 4)


def test_class_activation_maps_average_to_the_logits_without_the_bias():
    torch.manual_seed(0)
    feature_map, classifier = torch.randn(2, 5, 3, 4, requires_grad=True), nn.Linear(5, 3)
    maps = class_activation_maps(feature_map, classifier)
    assert maps.shape == (2, 3, 3, 4)
    torch.testing.assert_close(maps.mean((2, 3)), classifier(feature_map.mean((2, 3))) - classifier.bias)
    torch.testing.assert_close(maps[1, :, 2, 3], classifier.weight @ feature_map[1, :, 2, 3])
    maps.sum().backward()
    assert feature_map.grad.any() and classifier.weight.grad.any() and classifier.bias.grad is None


def test_bad_arguments_are_named():
    s, t = pair()
    theta = torch.tensor(0.0)
    a, b = cams(), cams((3, 5))
    linear = nn.Linear(5, 3)
    calls = [
        (lambda: dist_loss(s, t[:, :4]), "must both be (B, C) with C >= 2"),
        (lambda: dist_loss(s[:, :1], t[:, :1]), "must both be (B, C) with C >= 2"),
        (lambda: dist_loss(s, t, inter_weight=-1), "inter_weight must be a finite number, 0 or more; got -1"),
        (lambda: dist_loss(s, t, intra_weight=math.inf), "intra_weight must be a finite number"),
        (lambda: dist_loss(s, t, temperature=0), "temperature must be from 1e-06 to 1e+06; got 0"),
        (lambda: mlkd_loss(s, t[:3]), "must both be (B, C)"),
        (lambda: mlkd_loss(s, t, temperatures=()), "temperatures must have one entry or more; got none"),
        (lambda: mlkd_loss(s, t, temperatures=(2, -3)), "temperature must be from 1e-06 to 1e+06; got -3"),
        (lambda: ctkd_loss(s, t, torch.zeros(2), reversal=1), "theta must be one floating-point number on cpu"),
        (lambda: ctkd_loss(s, t, torch.tensor(1), reversal=1), "got torch.int64 () on cpu"),
        (lambda: ctkd_loss(s, t, theta, reversal=-0.1), "reversal must be a finite number, 0 or more; got -0.1"),
        (lambda: ctkd_loss(s, t, theta, reversal=1, span=-1), "span must be"),
        (lambda: ctkd_loss(s, t, theta, reversal=1, start=0), "temperature must be"),
        (lambda: ctkd_loss(s, t, theta, reversal=1, span=1e7), "temperature must be"),
        (lambda: ctkd_reversal(-1), "epoch must be 0 or more; got -1"),
        (lambda: ctkd_reversal(1, epochs=0), "epochs must be a finite number above 0; got 0"),
        (lambda: ctkd_reversal(1, maximum=-1), "maximum must be"),
        (lambda: catkd_loss(a[0], b), "student_cams must be (B, C, H, W)"),
        (lambda: catkd_loss(a, b[:, :2]), "same samples and classes; got (2, 3, 4, 6) and (2, 2, 3, 5)"),
        (lambda: catkd_loss(a, b, resolution=4), "resolution must be from 1 to 3, the maps' shortest side; got 4"),
        (lambda: catkd_loss(a, b, resolution=0), "resolution must be from 1 to 3"),
        (lambda: class_activation_maps(a, linear), "feature_map must be (B, 5, H, W), as the classifier has 5 inputs"),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=re.escape(words)):
            call()
    with pytest.raises(TypeError, match=r"classifier must be an nn\.Linear; got Identity"):
        class_activation_maps(a, nn.Identity())
