"""SimKD, VID and OFD: numbers by hand, plain formulas, limits, and what is refused."""

from __future__ import annotations

import math
import re
from statistics import NormalDist

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_det.losses import SimKDLoss, VIDLoss, ofd_loss, ofd_margin
from tests.losses.cases import random_maps
from tests.losses.test_multi_level import assert_same_value_and_gradient

SIZES = [((4, 4), (4, 4)), ((6, 3), (4, 5)), ((2, 2), (4, 4))]


def leaf(size, **settings):
    return random_maps(size, **settings)[0].requires_grad_()


def pooled(s, t):
    """Both at the smaller height and width."""
    pool = nn.AdaptiveAvgPool2d(tuple(min(a, b) for a, b in zip(s.shape[2:], t.shape[2:], strict=True)))
    return pool(s), pool(t)


def simkd(**settings):
    torch.manual_seed(0)
    return SimKDLoss(3, 4, **settings).double()


@pytest.mark.parametrize(("s_size", "t_size"), SIZES)
@pytest.mark.parametrize("training", [True, False])
def test_simkd_is_its_layers_and_a_mean_squared_error(s_size, t_size, training):
    module = simkd().train(training)
    s, (t,) = leaf(s_size), random_maps(t_size, channels=4, seed=1)
    x, target = pooled(s, t)
    for conv, norm in zip(module.projector[::3], module.projector[1::3], strict=True):
        x = F.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2)
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, variance = norm.running_mean, norm.running_var
        x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
        x = x.clamp_min(0)
    assert_same_value_and_gradient(module(s, t), (x - target).square().mean(), s, *module.projector[0].parameters())


def test_simkds_projector():
    for reduction, middle in ((1, 4), (2, 2), (3, 1), (4, 1)):
        convs = simkd(reduction=reduction).projector[::3]
        shapes = [tuple(conv.weight.shape[:3]) for conv in convs]
        assert shapes == [(middle, 3, 1), (middle, middle, 3), (4, middle, 1)]
        assert all(c.bias is None for c in convs)


def test_simkds_logits_are_the_teachers_classifier_on_the_projected_map():
    module, classifier = simkd().eval(), nn.Linear(4, 5).double()
    s, (t,) = leaf((6, 6)), random_maps((4, 4), channels=4)
    logits = module.logits(s, classifier, (4, 4))
    x, _ = pooled(s, t)
    torch.testing.assert_close(logits, classifier(module.projector(x).flatten(2).mean(2)))
    # A student that has learnt the teacher's map has the teacher's logits.
    module.projector = nn.Identity()
    torch.testing.assert_close(module.logits(t, classifier, (4, 4)), classifier(t.mean((2, 3))))


def test_simkd_in_training_takes_one_image_of_one_position():
    s, (t,) = leaf((1, 1), batch=1), random_maps((1, 1), channels=4, batch=1)
    value = simkd()(s, t)
    value.backward()
    assert value.isfinite() and s.grad.isfinite().all()


def vid(**settings):
    torch.manual_seed(0)
    module = VIDLoss(3, 4, **settings).double()
    with torch.no_grad():
        module.log_scale.add_(torch.linspace(-2, 2, 4))
    return module


@pytest.mark.parametrize(("s_size", "t_size"), SIZES)
def test_vid_is_the_density_of_a_normal_distribution(s_size, t_size):
    module = vid()
    s, (t,) = leaf(s_size), random_maps(t_size, channels=4, seed=1)
    x, target = pooled(s, t)
    for layer in module.regressor[::2]:
        x = torch.einsum("ec,bchw->behw", layer.weight[:, :, 0, 0], x)
        x = x if layer is module.regressor[-1] else x.clamp_min(0)
    std = ((1 + module.log_scale.exp()).log() + 1e-5).sqrt().view(-1, 1, 1)
    log_density = torch.distributions.Normal(x, std.expand_as(x)).log_prob(target)
    expected = -(log_density + math.log(2 * math.pi) / 2).mean()
    assert_same_value_and_gradient(module(s, t), expected, s, *module.parameters())


def test_vids_variances_start_where_they_are_told_and_are_learned():
    for variance in (1e-4, 0.5, 5.0, 300.0):
        module = VIDLoss(3, 4, init_variance=variance)
        assert [name for name, _ in module.named_parameters() if "log_scale" in name] == ["log_scale"]
        zero = torch.zeros(1, 3, 1, 1)
        expected = math.log(variance) / 2
        assert module(zero, torch.zeros(1, 4, 1, 1)).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    module = VIDLoss(3, 4)
    module(torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)).backward()
    assert module.log_scale.grad.all()


def test_vid_is_finite_at_any_variance_and_least_at_the_mean_squared_error():
    module = vid()
    s, (t,) = leaf((4, 4)), random_maps((4, 4), channels=4, seed=1)
    for value in (-1e4, -100.0, 100.0, 1e4):
        with torch.no_grad():
            module.log_scale.fill_(value)
        loss = module(s, t)
        loss.backward()
        assert loss.isfinite() and module.log_scale.grad.isfinite().all()
    errors = (module.regressor(s) - t).square().mean((0, 2, 3)).detach()
    with torch.no_grad():
        module.log_scale.copy_((errors - 1e-5).expm1().log())
    (gradient,) = torch.autograd.grad(module(s, t), module.log_scale)
    assert gradient.abs().max() < 1e-12


def test_margins_by_hand_and_by_another_normal_distribution():
    normal = NormalDist()
    weight = torch.tensor([1.0, -2.0, 0.5, 1.0, 1.0, 3.0], dtype=torch.float64)
    bias = torch.tensor([0.0, 1.0, -4.0, 3.0, 3.1, -2.0], dtype=torch.float64)
    expected = []
    for s, m in zip(weight.abs().tolist(), bias.tolist(), strict=True):
        share = normal.cdf(-m / s)
        expected.append(m - s * normal.pdf(m / s) / share if share > 0.001 else -3 * s)
    actual = ofd_margin(weight, bias)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)
    # Half of a normal distribution has the mean −√(2/π); 3.1 standard deviations above 0 are too far.
    assert actual[0].item() == pytest.approx(-math.sqrt(2 / math.pi))
    assert actual[4].item() == -3


def test_margins_are_the_means_of_the_negative_values():
    generator = torch.Generator().manual_seed(0)
    values = 2 * torch.randn(200_000, generator=generator) + 1
    margin = ofd_margin(torch.tensor([2.0]), torch.tensor([1.0]))
    assert margin.item() == pytest.approx(values[values < 0].mean().item(), abs=0.01)


def test_margins_of_odd_channels():
    """Without spread, with next to none, and with the largest numbers: 0 or less, and finite."""
    largest = torch.finfo(torch.float32).max
    weight = torch.tensor([0.0, 0.0, 0.0, 1e-38, 1.0, 1e-20, 3e38 / 4])
    bias = torch.tensor([-2.0, 0.0, 2.0, 1.0, -largest, -1.0, 0.0])
    margin = ofd_margin(weight, bias)
    assert margin[:3].tolist() == [-2, 0, 0]
    assert margin.isfinite().all() and (margin <= 0).all()
    assert not ofd_margin(weight.requires_grad_(), bias).requires_grad
    assert ofd_margin(weight.half(), bias.clamp(-9, 9).half()).dtype == torch.float32


def ofd_by_loops(student, teacher, margins):
    total = 0.0
    for level, (s, t, margin) in enumerate(zip(student, teacher, margins, strict=True)):
        error = 0.0
        for image, other in zip(s, t, strict=True):
            for c in range(len(image)):
                for value, target in zip(image[c].flatten(), other[c].flatten(), strict=True):
                    if target > 0:
                        error = error + (value - target) ** 2
                    elif value > max(target, margin[c]):
                        error = error + (value - max(target, margin[c])) ** 2
        total = total + error / len(s) / 2 ** (len(student) - 1 - level)
    return total


def test_ofd_is_the_plain_formula():
    sizes = [(4, 3), (2, 2), (3, 1)]
    student, teacher = [leaf(size, seed=i) for i, size in enumerate(sizes)], random_maps(*sizes, seed=1)
    margins = list(-torch.rand(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert_same_value_and_gradient(
        ofd_loss(student, teacher, margins), ofd_by_loops(student, teacher, margins), *student
    )


def test_ofd_by_hand():
    """Margin −1. Teacher 2: 1 − 2. Teacher −0.5: 0 − −0.5; −3 costs nothing. Teacher −4: 0 − −1; −2 costs nothing."""
    s = torch.tensor([1.0, 0.0, -3.0, 0.0, -2.0], requires_grad=True)
    t = torch.tensor([2.0, -0.5, -0.5, -4.0, -4.0]).view(1, 1, 1, 5)
    maps, margins = [s.view(1, 1, 1, 5)], [torch.tensor([-1.0])]
    value = ofd_loss(maps, [t], margins)
    value.backward()
    assert value.item() == pytest.approx(1 + 0.25 + 1)
    assert s.grad.tolist() == [-2, 1, 0, 2, 0]
    assert ofd_loss(maps * 3, [t] * 3, margins * 3).item() == pytest.approx(2.25 * (1 / 4 + 1 / 2 + 1))
    assert ofd_loss([maps[0].repeat(4, 1, 1, 1)], [t.repeat(4, 1, 1, 1)], margins).item() == pytest.approx(2.25)


def test_ofd_brings_the_teachers_map_to_the_students_size():
    margins = [torch.full((3,), -0.3, dtype=torch.float64)]
    for s_size, t_size in (((2, 3), (4, 6)), ((4, 4), (2, 2))):
        s, (t,) = leaf(s_size), random_maps(t_size, seed=1)
        expected = ofd_by_loops([s], [F.adaptive_avg_pool2d(t, s_size)], margins)
        assert_same_value_and_gradient(ofd_loss([s], [t], margins), expected, s)


def test_ofd_of_the_teachers_values_and_of_what_the_relu_removes_is_0():
    (t,) = random_maps((4, 4))
    margins = [torch.full((3,), -0.5, dtype=torch.float64)]
    below = torch.where(t > 0, t, t.clamp(max=-0.5) - 3)
    for same in (torch.maximum(t, margins[0].view(-1, 1, 1)), below):
        s = same.requires_grad_()
        value = ofd_loss([s], [t], margins)
        value.backward()
        assert value == 0 and not s.grad.any()


def test_bad_settings_and_arguments_are_named():
    s, t = random_maps((4, 4))[0], random_maps((4, 4), channels=4)[0]
    margin = torch.zeros(4)
    calls = [
        (lambda: SimKDLoss(0, 4), "student_channels and teacher_channels must be 1 or more; got 0 and 4"),
        (lambda: SimKDLoss(3, 4, reduction=5), "reduction must be from 1 to 4, the teacher's channels; got 5"),
        (lambda: SimKDLoss(3, 4, reduction=0), "reduction must be from 1 to 4"),
        (lambda: VIDLoss(3, -1), "student_channels and teacher_channels must be 1 or more"),
        (lambda: VIDLoss(3, 4, init_variance=0), "0 < eps < init_variance; got 0 and 1e-05"),
        (lambda: VIDLoss(3, 4, eps=0), "0 < eps < init_variance; got 5.0 and 0"),
        (
            lambda: simkd()(t, s),
            "SimKDLoss was built for maps of 3 and 4 channels (teacher), of the same images",
        ),
        (lambda: simkd()(s, t[:1]), "of the same images; got (2, 3, 4, 4) and (1, 4, 4, 4)"),
        (lambda: simkd()(s[0], t), "student_map must be (B, C, H, W)"),
        (lambda: vid()(s, s), "VIDLoss was built for maps of 3 and 4 channels (teacher)"),
        (lambda: vid()(s, t.long()), "teacher_map must be float16"),
        (lambda: ofd_margin(margin, margin[:3]), "bn_weight and bn_bias must both be (C,); got (4,) and (3,)"),
        (lambda: ofd_margin(margin, margin.long()), "got torch.float32 on cpu and torch.int64 on cpu"),
        (
            lambda: ofd_loss([s], [t], [margin]),
            "student_maps must have the teacher's channels, level by level; got",
        ),
        (lambda: ofd_loss([t], [t], [margin[:3]]), "margins must be one (C,) for each level, [(4,)]; got 1 map, (3,)"),
        (lambda: ofd_loss([t], [t], []), "margins must be one (C,) for each level"),
        (lambda: ofd_loss([t, t], [t], [margin]), "equal in number, and of one batch"),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=re.escape(words)):
            call()
