from __future__ import annotations

import math

import pytest
import torch

from kd_det.losses import HCDLoss, kd_loss
from kd_det.losses.hcd import orthogonality_loss

TERMS = ["kd", "fused_kd", "fused_ce", "orthogonality"]
BATCH, CLASSES, STUDENT, TEACHER = 4, 5, 3, 6


def batch(size=BATCH, classes=CLASSES, dtype=torch.float64, seed=0):
    """s, t, y, the student's map and the teacher's feature."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    y = torch.randint(classes, (size,), generator=generator)
    s, student_map = 3 * normal(size, classes), normal(size, STUDENT, 3, 2)
    return s.requires_grad_(), 3 * normal(size, classes), y, student_map.requires_grad_(), normal(size, TEACHER)


def loss_module(classes=CLASSES, seed=0, **settings):
    torch.manual_seed(seed)
    return HCDLoss(STUDENT, TEACHER, classes, **settings).double()


def hcd_by_loops(module, s, t, y, student_map, teacher_feature):
    """The unweighted terms, image by image, sub-logit by sub-logit; the projector sees the whole map."""
    totals = dict.fromkeys(TERMS, 0.0)
    for i in range(len(s)):
        pooled = module.projector(student_map[i : i + 1]).mean((2, 3))[0]
        shared = module.mapper.weight @ torch.cat((pooled, teacher_feature[i])) + module.mapper.bias
        subs = [shared[k * s.shape[1] : (k + 1) * s.shape[1]] for k in range(module.n)]
        settings = {"temperature": module.temperature}
        totals["kd"] += kd_loss(s[i : i + 1], t[i : i + 1], **settings)
        for sub in subs:
            fused = t[i] + sub
            totals["fused_kd"] += kd_loss(s[i : i + 1], fused.unsqueeze(0), **settings)
            totals["fused_ce"] += fused.exp().sum().log() - fused[y[i]]
        pairs = [(a, b) for k, a in enumerate(subs) for b in subs[k + 1 :]]
        squares = [(a @ b) ** 2 / (a @ a) / (b @ b) for a, b in pairs]
        totals["orthogonality"] += sum(squares) / max(len(pairs), 1)
    return {name: total / len(s) for name, total in totals.items()}


def gradients(value, module, s, student_map):
    inputs = [s, student_map, *module.parameters()]
    return torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("projector_channels", [0, 2])
def test_equals_plain_loops(n, projector_channels):
    module = loss_module(
        n=n, projector_channels=projector_channels, temperature=2.0, ce_weight=0.3, orthogonal_weight=7.0
    )
    arguments = batch()
    terms, expected = module(*arguments), hcd_by_loops(module, *arguments)
    assert list(terms) == TERMS
    expected["fused_ce"] *= 0.3
    expected["orthogonality"] *= 7.0
    for name in TERMS if n > 1 else TERMS[:-1]:
        torch.testing.assert_close(terms[name], expected[name], rtol=1e-12, atol=0)
        of_both = (gradients(value, module, arguments[0], arguments[3]) for value in (terms[name], expected[name]))
        for gradient, other in zip(*of_both, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["fused_ce", "orthogonality"])
def test_gradients_of_map_and_weights_are_those_of_the_value(name):
    module, (s, t, y, student_map, feature) = loss_module(n=2, projector_channels=2), batch(2)
    names, weights = zip(*module.named_parameters(), strict=True)

    def value(student_map, *weights):
        parameters = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, parameters, (s, t, y, student_map, feature))[name]

    assert torch.autograd.gradcheck(value, (student_map, *weights))


@pytest.mark.parametrize("name", ["kd", "fused_kd"])
def test_gradient_of_the_logits_is_that_of_the_value(name):
    module, (s, *others) = loss_module(), batch()
    assert torch.autograd.gradcheck(lambda s: module(s, *others)[name], s)


def test_which_term_teaches_whom():
    """fused is a target for the student, and no more than that in KD; the teacher learns nothing."""
    module, (s, t, y, student_map, feature) = loss_module(), batch()
    terms = module(s, t.requires_grad_(), y, student_map, feature.requires_grad_())
    reached = {}
    for name, value in terms.items():
        student, through_map, *weights = gradients(value, module, s, student_map)
        reached[name] = (bool(student.any()), bool(through_map.any()), all(weight.any() for weight in weights))
    assert reached == {
        "kd": (True, False, False),
        "fused_kd": (True, False, False),
        "fused_ce": (False, True, True),
        "orthogonality": (False, True, True),
    }
    sum(terms.values()).backward()
    assert t.grad is None and feature.grad is None


def test_a_mapper_of_zeros_leaves_the_teacher():
    module, (s, t, y, *features) = loss_module(n=3), batch()
    torch.nn.init.zeros_(module.mapper.weight)
    torch.nn.init.zeros_(module.mapper.bias)
    terms = module(s, t, y, *features)
    torch.testing.assert_close(terms["fused_kd"], 3 * kd_loss(s, t))
    torch.testing.assert_close(terms["fused_ce"], 3 * torch.nn.functional.cross_entropy(t, y))
    assert terms["orthogonality"] == 0
    sum(terms.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in module.parameters())


def test_training_projector_and_mapper_lowers_their_terms():
    module, arguments = loss_module(n=2), batch()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    sums = []
    for _ in range(60):
        terms = module(*arguments)
        value = terms["fused_ce"] + terms["orthogonality"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        sums.append(value.item())
    assert sums[-1] < 0.05 * sums[0]


def test_orthogonal_sub_logits():
    sub_logits = torch.eye(3, 4).unsqueeze(0) * torch.tensor([[[2.0], [-3.0], [0.1]]])
    assert orthogonality_loss(sub_logits).item() == 0


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (1.0, -2.0, 300.0)])
def test_sub_logits_along_one_line(factors):
    sub_logits = torch.randn(4, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sub_logits = sub_logits * torch.tensor(factors).view(1, 3, 1)
    assert orthogonality_loss(sub_logits).item() == pytest.approx(1, rel=1e-14)


def test_orthogonality_by_hand():
    """Two samples; cosines 1/√2, 0, 1/√2 and 1, 0, 0: the mean of the squares is (1/2 + 1/2 + 1) / 6."""
    sub_logits = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]])
    assert orthogonality_loss(sub_logits).item() == pytest.approx(1 / 3, rel=1e-6)


def test_one_sub_logit_has_no_orthogonality():
    module, arguments = loss_module(n=1), batch()
    value = module(*arguments)["orthogonality"]
    assert value.item() == 0
    assert not any(gradient.any() for gradient in gradients(value, module, arguments[0], arguments[3]))


def test_orthogonality_of_the_smallest_and_largest_sub_logits():
    for size in (0.0, 1e-30, 1e-6, 1.0, 1e30):
        sub_logits = torch.full((2, 3, 4), size, requires_grad=True)
        value = orthogonality_loss(sub_logits)
        value.backward()
        assert 0 <= value <= 1 + 1e-6 and sub_logits.grad.isfinite().all()


@pytest.mark.parametrize(("size", "classes"), [(0, 5), (1, 2), (1, 100)])
def test_the_smallest_batches(size, classes):
    module, arguments = loss_module(classes), batch(size, classes)
    terms = module(*arguments)
    total = sum(terms.values())
    total.backward()
    assert total.isfinite() and (total == 0) == (size == 0)
    assert arguments[0].grad.isfinite().all() and arguments[3].grad.shape == arguments[3].shape
    assert all(weight.grad.isfinite().all() for weight in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_logits_give_a_finite_loss(dtype):
    largest = torch.finfo(dtype).max
    corners = torch.tensor([-largest, 0.0, largest], dtype=dtype)
    s = torch.cartesian_prod(corners, corners, corners).requires_grad_()
    _, _, y, student_map, feature = batch(27, 3, torch.float32)
    terms = loss_module(3).float()(s, s.detach().flip(0), y, student_map, feature)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in terms.values())
    assert torch.autograd.grad(sum(terms.values()), s)[0].isfinite().all()


def test_half_precision_features_and_autocast():
    """Only projector and mapper are in bfloat16; what is made of their sub-logits is in float32."""
    module, (s, t, y, student_map, feature) = loss_module().float(), batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        terms = module(s, t, y, student_map, feature)
        sub_logits = module.sub_logits(student_map, feature)
    assert sub_logits.dtype == torch.bfloat16
    assert terms["kd"].equal(kd_loss(s, t)) and terms["orthogonality"].equal(orthogonality_loss(sub_logits.float()))
    fused = t.unsqueeze(1) + sub_logits.float()
    expected = sum(kd_loss(s, fused[:, k]) for k in range(4))
    torch.testing.assert_close(terms["fused_kd"], expected)
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert all(g.dtype == torch.float32 for g in gradients(sum(terms.values()), module, s, student_map))


@pytest.mark.parametrize("field", [0, 1, 3, 4])
def test_nan_is_not_hidden(field):
    arguments = [z.detach() for z in batch()]
    arguments[field] = torch.full_like(arguments[field], math.nan)
    assert sum(loss_module()(*arguments).values()).isnan()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student_channels": 0}, "student_channels and teacher_channels must be 1 or more"),
        ({"teacher_channels": 0}, "student_channels and teacher_channels must be 1 or more"),
        ({"num_classes": 1}, "num_classes 2 or more; got 3, 6 and 1"),
        ({"n": 0}, "n must be 1 or more, projector_channels 0 or more; got 0 and 0"),
        ({"projector_channels": -1}, "got 4 and -1"),
        ({"temperature": 0.0}, "temperature must be from 1e-06"),
        ({"ce_weight": -1.0}, "ce_weight must be a finite number, 0 or more; got -1.0"),
        ({"orthogonal_weight": math.nan}, "orthogonal_weight must be a finite number, 0 or more; got nan"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        HCDLoss(**{"student_channels": STUDENT, "teacher_channels": TEACHER, "num_classes": CLASSES} | settings)


def test_invalid_arguments():
    module, (s, t, y, student_map, feature) = loss_module(), batch()
    for arguments, message in (
        ((s, t[:, :4], y, student_map, feature), "must both be"),
        ((s[:, :4], t[:, :4], y, student_map, feature), r"built for 5 classes; got student_logits \(4, 4\)"),
        ((s, t, y[:3], student_map, feature), r"labels must be \(4,\)"),
        ((s, t, torch.full_like(y, 5), student_map, feature), "labels must be from 0 to 4; got 5"),
        ((s, t, y, student_map[:, :2], feature), r"map must be \(4, 3, H, W\).*got \(4, 2, 3, 2\)"),
        ((s, t, y, student_map[..., :0], feature), r"map must be \(4, 3, H, W\).*got \(4, 3, 3, 0\)"),
        ((s, t, y, student_map, feature[:, 1:]), r"feature must be \(4, 6\); got \(4, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            module(*arguments)
