"""sdd: the regions' logits from one call of each classifier, the base's settings, and models that do not fit."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_det.common.errors import SetupError
from kd_det.losses import dkd_loss, kd_loss, nkd_loss, sdd_loss, standardize_logits
from tests.classification.distillers.tiny import Case, student, teacher

SETTINGS = [
    "KD.TEMPERATURE", 2.0, "DKD.ALPHA", 0.7, "DKD.BETA", 3.0, "DKD.TEMPERATURE", 3.0, "NKD.GAMMA", 0.6,
    "NKD.TEMPERATURE", 1.5, "KD.WEIGHT", 9.0, "DKD.WEIGHT", 9.0, "NKD.WEIGHT", 9.0, "SDD.WEIGHT", 0.5,
    "SDD.COMPLEMENTARY_WEIGHT", 3.0,
]  # fmt: skip
BASES = {
    "kd": {"base": kd_loss, "temperature": 2.0},
    "dkd": {"base": dkd_loss, "alpha": 0.7, "beta": 3.0, "temperature": 3.0},
    "nkd": {"base": nkd_loss, "gamma": 0.6, "temperature": 1.5},
}


def region_by_region(model, feature_map, scales):
    """(B, C, N): every region cut out, averaged and classified by itself; m must divide the map's side."""
    logits = []
    for m in scales:
        side = feature_map.shape[2] // m
        for row in range(m):
            for column in range(m):
                region = feature_map[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
                logits.append(F.linear(region.mean((2, 3)), model.classifier.weight, model.classifier.bias))
    return torch.stack(logits, dim=2)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 2, 4)])
@pytest.mark.parametrize("base", BASES)
def test_equals_classifying_every_region_by_itself(base, scales, standardize):
    case = Case("sdd", *SETTINGS, "SDD.BASE", base, "SDD.SCALES", scales, "STANDARDIZE", standardize)
    s = region_by_region(case.student, case.student_out.map, scales)
    t = region_by_region(case.teacher, case.teacher_out.map, scales)
    if standardize:
        s, t = standardize_logits(s), standardize_logits(t)
    expected = 0.5 * sdd_loss(s, t, case.batch.labels, complementary_weight=3.0, **BASES[base])
    loss = case.losses()["loss_sdd"]
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    learnt = [case.student.stages[0].weight, case.student.classifier.weight]
    expected_gradients = torch.autograd.grad(expected, learnt, retain_graph=True)
    for ours, theirs in zip(torch.autograd.grad(loss, learnt), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_scale_1_is_the_base_itself(base):
    case = Case("sdd", *SETTINGS, "SDD.BASE", base, "SDD.SCALES", (1,))
    own = Case(base, *SETTINGS, f"{base.upper()}.WEIGHT", 0.5)
    torch.testing.assert_close(case.losses()["loss_sdd"], own.losses()[f"loss_{base}"], rtol=1e-10, atol=0)


def test_each_classifier_is_called_once_and_the_teachers_without_a_graph():
    case = Case("sdd")
    calls = {}
    for side, model in (("student", case.student), ("teacher", case.teacher)):
        model.classifier.register_forward_hook(
            lambda module, inputs, output, side=side: calls.setdefault(side, []).append(output)
        )
    case.losses()["loss_sdd"].backward()
    assert {side: len(outputs) for side, outputs in calls.items()} == {"student": 1, "teacher": 1}
    assert calls["student"][0].shape == calls["teacher"][0].shape == (4, 21, 5)
    assert calls["student"][0].requires_grad and not calls["teacher"][0].requires_grad
    assert case.student.classifier.weight.grad.any() and case.teacher.classifier.weight.grad is None


def test_the_first_region_is_the_models_own_answer():
    case = Case("sdd")
    seen = []
    case.student.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output))
    case.losses()
    torch.testing.assert_close(seen[0][:, 0], case.student_out.logits, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["SDD.SCALES", (1, 2, 8)],
            "SDD.SCALES (1, 2, 8): the student's map is 4 x 4. Remove scales above 4",
        ),
        (["SDD.SCALES", (2, 4)], "SDD.SCALES is (2, 4); it must be 1"),
        (["SDD.SCALES", (1, 2, 2)], "SDD.SCALES is (1, 2, 2); it must be 1"),
        (["SDD.SCALES", (1, 0)], "SDD.SCALES is (1, 0); it must be 1"),
        (["SDD.SCALES", (1, 2.0)], "SDD.SCALES is (1, 2.0); it must be 1"),
        (["SDD.SCALES", ()], "SDD.SCALES is (); it must be 1"),
        (["SDD.BASE", "dkdd"], "SDD.BASE is 'dkdd'; it must be one of kd, dkd, nkd. Did you mean 'dkd'?"),
        (["SDD.WEIGHT", -1.0], "SDD.WEIGHT is -1.0; it must be"),
        (["SDD.COMPLEMENTARY_WEIGHT", -1.0], "SDD.COMPLEMENTARY_WEIGHT is -1.0; it must be"),
        (["SDD.BASE", "kd", "KD.TEMPERATURE", 0.0], "KD.TEMPERATURE is 0.0; it must be"),
    ],
)
def test_bad_settings_are_named_at_start_up(overrides, words):
    with pytest.raises(SetupError, match=re.escape(words)):
        Case("sdd", *overrides)


def test_settings_of_another_base_do_not_matter():
    assert Case("sdd", "SDD.BASE", "nkd", "KD.TEMPERATURE", 0.0, "DKD.BETA", -1.0).losses()["loss_sdd"].isfinite()


def test_a_teachers_map_that_is_too_small():
    networks = (student(), teacher())
    networks[1].stages[0].stride = (2, 2)
    with pytest.raises(SetupError, match=r"the teacher's map is 2 x 2\. Remove scales above 2"):
        Case("sdd", networks=networks)


def test_repeat_allows_scales_larger_than_a_map():
    """A teacher's 2 x 2 map: what its 16 regions of scale 4 are is each of its positions four times."""
    networks = (student(), teacher())
    networks[1].stages[0].stride = (2, 2)
    case = Case("sdd", "SDD.REPEAT", True, networks=networks)
    seen = []
    case.teacher.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert case.losses()["loss_sdd"] > 0
    (logits,) = seen
    quarters = logits[:, 1:5].unflatten(1, (2, 2))
    expected = quarters.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    torch.testing.assert_close(logits[:, 5:], expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(SetupError, match=r"the student's map is 4 x 4.*at most 16 with SDD\.REPEAT"):
        Case("sdd", "SDD.REPEAT", True, "SDD.SCALES", (1, 17))


class Wrapped(nn.Module):
    """A model whose ``classifier`` and ``pools_linearly`` are what is given, or missing."""

    def __init__(self, **attributes):
        super().__init__()
        self.inner = student()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x, return_features=False):
        return self.inner(x, return_features)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"classifier": None, "pools_linearly": True},
        {"classifier": nn.Sequential(nn.Linear(8, 5)), "pools_linearly": True},
        {"classifier": nn.Linear(8, 5)},
        {"classifier": nn.Linear(8, 5), "pools_linearly": False},
        {"classifier": nn.Linear(8, 5), "pools_linearly": "yes"},
        {"pools_linearly": True},
    ],
)
def test_models_whose_regions_have_no_logits(attributes):
    for networks, key in (
        ((Wrapped(**attributes), teacher()), "STUDENT.NAME 'tiny'"),
        ((student(), Wrapped(**attributes)), "TEACHER.NAME 'large'"),
    ):
        with pytest.raises(SetupError, match=f"DISTILLER 'sdd': {key} does not classify the average of its map"):
            Case("sdd", networks=networks)


def test_a_wrapped_model_that_says_it_can():
    wrapped = Wrapped(pools_linearly=True)
    wrapped.classifier = wrapped.inner.classifier
    assert Case("sdd", networks=(wrapped, teacher())).losses() == Case("sdd").losses()
