"""Properties of all distillers. Each one is the function of that name in kd_det.losses."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from classification.distillers import DISTILLERS, NetworkPair, build_distiller
from classification.models import before_relu
from kd_det.common.errors import SetupError
from kd_det.losses import (
    at_loss,
    coupled_dkd_loss,
    dkd_loss,
    fitnet_loss,
    hcl_loss,
    kd_loss,
    nkd_loss,
    pool_to_common_size,
    rkd_angle_loss,
    rkd_distance_loss,
    standardize_logits,
)
from tests.classification.conftest import ROOT
from tests.classification.distillers.tiny import Case, Tiny, batch, config, student, teacher

NAMES = pytest.mark.parametrize("name", sorted(set(DISTILLERS) - {"none"}))
DKD = ["DKD.ALPHA", 0.7, "DKD.BETA", 3.0, "DKD.TEMPERATURE", 2.0, "DKD.WEIGHT", 0.5]
LOGITS = {
    "kd": (["KD.TEMPERATURE", 2.0, "KD.WEIGHT", 0.5], lambda s, t, y: kd_loss(s, t, temperature=2.0)),
    "dkd": (DKD, lambda s, t, y: dkd_loss(s, t, y, alpha=0.7, beta=3.0, temperature=2.0)),
    "nkd": (
        ["NKD.GAMMA", 0.7, "NKD.TEMPERATURE", 2.0, "NKD.WEIGHT", 0.5],
        lambda s, t, y: nkd_loss(s, t, y, gamma=0.7, temperature=2.0),
    ),
    "dkd_tckd": (DKD, lambda s, t, y: dkd_loss(s, t, y, alpha=1.0, beta=0.0, temperature=2.0)),
    "dkd_nckd": (DKD, lambda s, t, y: dkd_loss(s, t, y, alpha=0.0, beta=1.0, temperature=2.0)),
    "dkd_coupled": (DKD, lambda s, t, y: coupled_dkd_loss(s, t, y, alpha=0.7, temperature=2.0)),
}


def test_all_methods_are_there():
    methods = {"none", "kd", "dkd", "nkd", "sdd", "dkd_tckd", "dkd_nckd", "dkd_coupled", "fitnet", "at", "rkd"}
    toolbox = {"sp", "nst", "pkt", "kdsvd", "vid", "ofd", "simkd", "crd", "dist", "mlkd", "ctkd", "catkd"}
    assert methods | {"reviewkd"} | toolbox <= set(DISTILLERS)


@NAMES
def test_finite_losses_and_gradients_in_the_student_and_what_is_learnt(name):
    case = Case(name)
    losses = case.losses()
    assert losses and all(key == f"loss_{name}" or key.startswith(f"loss_{name}_") for key in losses)
    assert all(value.shape == () and value.isfinite() and value.requires_grad for value in losses.values())
    sum(losses.values()).backward()
    learnt = [next(case.student.parameters()), *case.distiller.parameters()]
    assert all(parameter.grad.isfinite().all() for parameter in learnt)
    assert learnt[0].grad.any()
    assert all(parameter.grad is None for parameter in case.teacher.parameters())


@NAMES
def test_no_parameter_of_the_two_networks_is_the_distillers(name):
    case = Case(name)
    theirs = {id(p) for model in case.models for p in model.parameters()}
    assert not theirs & {id(p) for p in case.distiller.parameters()}
    assert not set(case.models) & set(case.distiller.modules())
    assert not {model.classifier for model in case.models} & set(case.distiller.modules())
    addresses = {p.data_ptr() for model in case.models for p in model.state_dict().values()}
    assert not addresses & {value.data_ptr() for value in case.distiller.state_dict().values() if value.numel()}


@NAMES
def test_a_batch_without_samples_to_distil(name):
    """DATA.CONFIDENCE_RANGE may leave no sample: the loss is a zero with a graph, and every parameter gets a
    gradient."""
    case = Case(name, size=0)
    total = sum(case.losses().values())
    assert total == 0
    total.backward()
    assert all(not parameter.grad.any() for parameter in case.distiller.parameters())


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("standardize", [False, True])
def test_logit_distillers_are_their_loss_with_their_own_sections_settings(name, standardize):
    overrides, loss = LOGITS[name]
    case = Case(name, *overrides, "STANDARDIZE", standardize)
    s, t = case.student_out.logits, case.teacher_out.logits
    if standardize:
        s, t = standardize_logits(s), standardize_logits(t)
    expected = 0.5 * loss(s, t, case.batch.labels)
    assert {key: value.item() for key, value in case.losses().items()} == {f"loss_{name}": expected.item()}


def test_dkds_parts_add_up_to_it_and_the_coupled_ones_to_kd():
    whole, target, others = (Case(name, *DKD).losses() for name in ("dkd", "dkd_tckd", "dkd_nckd"))
    summed = 0.7 * target["loss_dkd_tckd"] + 3.0 * others["loss_dkd_nckd"]
    torch.testing.assert_close(summed, whole["loss_dkd"], rtol=1e-12, atol=0)
    coupled, kd = Case("dkd_coupled").losses()["loss_dkd_coupled"], Case("kd").losses()["loss_kd"]
    torch.testing.assert_close(coupled, kd, rtol=1e-10, atol=0)


def test_none_adds_nothing_and_needs_no_teacher():
    images = batch()
    out = student()(images.images, return_features=True)
    distiller = build_distiller(config("none", "TEACHER.NAME", ""), NetworkPair(student(), None, out, None, 20))
    assert not distiller.needs_teacher
    assert distiller(images, out, None) == {}
    assert not list(distiller.parameters())


@pytest.mark.parametrize("stage", [0, 2])
def test_fitnet_regresses_the_teachers_stage(stage):
    case = Case("fitnet", "FITNET.WEIGHT", 10.0, "FITNET.STAGE", stage)
    expected = fitnet_loss([case.distiller.regressor(case.student_out.stages[stage])], [case.teacher_out.stages[stage]])
    assert case.losses()["loss_fitnet"].item() == 10 * expected.item()
    convolution = case.distiller.regressor[0]
    assert convolution.weight.shape[:2] == (teacher().stages[stage].out_channels, student().stages[stage].out_channels)


@pytest.mark.parametrize("turned", [False, True])
def test_fitnet_pools_the_larger_map_to_the_smaller(turned):
    """Four stages against three: the last two of the same number differ by a factor of 2."""
    networks = (Tiny((4, 6, 8)), _ending_early())
    case = Case("fitnet", "FITNET.STAGE", 2, networks=networks[::-1] if turned else networks)
    s, t = pool_to_common_size(case.student_out.stages[2], case.teacher_out.stages[2])
    assert s.shape[2:] == t.shape[2:] == (4, 4)
    expected = 100 * fitnet_loss([case.distiller.regressor(s)], [t])
    assert case.losses()["loss_fitnet"].item() == expected.item()


def _ending_early():
    """Its last stage does not shrink the map."""
    network = Tiny((5, 7, 9), seed=1)
    network.stages[2].stride = (1, 1)
    return network


def test_at_and_rkd_are_their_losses_on_stages_and_pooled_features():
    case = Case("at", "AT.WEIGHT", 10.0, "AT.POWER", 3)
    expected = at_loss(case.student_out.stages, case.teacher_out.stages, power=3)
    assert case.losses() == {"loss_at": 10 * expected}
    case = Case("rkd", "RKD.DISTANCE_WEIGHT", 2.0, "RKD.ANGLE_WEIGHT", 3.0)
    pooled = case.student_out.pooled, case.teacher_out.pooled
    assert case.losses() == {
        "loss_rkd_distance": 2 * rkd_distance_loss(*pooled),
        "loss_rkd_angle": 3 * rkd_angle_loss(*pooled),
    }


def test_reviewkd_fuses_stages_and_pooled_feature():
    case = Case("reviewkd", "REVIEWKD.WEIGHT", 2.0, "REVIEWKD.MID_CHANNELS", 3)
    ours, theirs = levels(case.student_out.stages, case.student_out), before_relu(case.teacher_out)
    expected = 2 * hcl_loss(case.distiller.fusion(ours), levels(theirs, case.teacher_out))
    assert case.losses()["loss_reviewkd"].item() == expected.item()
    fusion = case.distiller.fusion
    assert (fusion.in_channels, fusion.out_channels) == ((4, 6, 8, 8), (5, 7, 9, 9))
    assert fusion.blocks[0].reduce[0].out_channels == 3


def levels(maps, out):
    return [*maps, out.pooled.unflatten(1, (-1, 1, 1))]


def test_reviewkd_fuses_the_students_maps_before_their_relu_too():
    case = Case("reviewkd", "REVIEWKD.PREACTIVATION", True)
    ours, theirs = (levels(before_relu(out), out) for out in (case.student_out, case.teacher_out))
    assert (ours[0] < 0).any() and (theirs[0] < 0).any()
    assert case.losses()["loss_reviewkd"].item() == hcl_loss(case.distiller.fusion(ours), theirs).item()


@pytest.mark.parametrize(("width", "expected"), [(8, 8), (600, 512)])
def test_reviewkds_own_channels_are_the_students_up_to_512(width, expected):
    case = Case("reviewkd", networks=(Tiny((4, width)), Tiny((5, 7), seed=1)))
    assert case.distiller.fusion.blocks[0].reduce[0].out_channels == expected


@pytest.mark.parametrize("turned", [False, True])
def test_reviewkd_brings_a_fused_map_to_the_teachers_size(turned):
    """Where the teacher's is twice as large, each value counts for its 2 x 2; where it is half, their mean."""
    networks = (_ending_early(), Tiny((4, 6, 8)))
    case = Case("reviewkd", networks=networks if turned else networks[::-1])
    ours = case.distiller.fusion([*case.student_out.stages, case.student_out.pooled[:, :, None, None]])
    changed = ours[2].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) if turned else ours[2]
    ours[2] = changed if turned else changed.repeat_interleave(2, 2).repeat_interleave(2, 3)
    theirs = levels(before_relu(case.teacher_out), case.teacher_out)
    torch.testing.assert_close(case.losses()["loss_reviewkd"], hcl_loss(ours, theirs), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("kd", "KD.TEMPERATURE", (0.0, -1.0, float("nan"), float("inf"))),
        ("dkd", "DKD.TEMPERATURE", (0.0,)),
        ("nkd", "NKD.TEMPERATURE", (0.0,)),
        ("dkd_coupled", "DKD.TEMPERATURE", (0.0,)),
        ("kd", "KD.WEIGHT", (-1.0, float("nan"), float("inf"))),
        ("dkd", "DKD.WEIGHT", (-1.0,)),
        ("dkd", "DKD.ALPHA", (-1.0,)),
        ("dkd_tckd", "DKD.BETA", (float("nan"),)),
        ("nkd", "NKD.WEIGHT", (-1.0,)),
        ("nkd", "NKD.GAMMA", (-1.0,)),
        ("fitnet", "FITNET.WEIGHT", (-1.0,)),
        ("fitnet", "FITNET.STAGE", (3, -1)),
        ("at", "AT.WEIGHT", (-1.0,)),
        ("at", "AT.POWER", (0,)),
        ("rkd", "RKD.DISTANCE_WEIGHT", (-1.0,)),
        ("rkd", "RKD.ANGLE_WEIGHT", (float("inf"),)),
        ("reviewkd", "REVIEWKD.WEIGHT", (-1.0,)),
        ("reviewkd", "REVIEWKD.MID_CHANNELS", (-1,)),
    ],
)
def test_bad_settings_are_named_at_start_up(name, key, values):
    for value in values:
        with pytest.raises(SetupError, match=rf"{re.escape(key)} (is )?{re.escape(str(value))}[:;] "):
            Case(name, key, value)


@pytest.mark.parametrize("name", ["fitnet", "at", "rkd", "reviewkd", "none"])
def test_standardize_without_a_loss_on_logits(name):
    with pytest.raises(SetupError, match=f"STANDARDIZE True: DISTILLER '{name}' has no loss on logits.*False"):
        Case(name, "STANDARDIZE", True)


def test_standardize_of_two_classes():
    with pytest.raises(SetupError, match="STANDARDIZE True: with 2 classes"):
        Case("kd", "STANDARDIZE", True, networks=(student(classes=2), teacher(classes=2)))


@pytest.mark.parametrize("name", ["kd", "sdd"])
def test_other_classes_than_the_teachers(name):
    with pytest.raises(SetupError, match=r"has 5 classes and TEACHER\.NAME 'large' has 6\. Take a teacher"):
        Case(name, networks=(student(), teacher(classes=6)))


@pytest.mark.parametrize("name", ["at", "reviewkd"])
def test_other_numbers_of_stages(name):
    with pytest.raises(SetupError, match=r"STUDENT\.NAME 'tiny' has 3 stages and TEACHER\.NAME 'large' has 2"):
        Case(name, networks=(student(), Tiny((5, 7))))


@pytest.mark.parametrize("name", ["kd", "fitnet"])
def test_no_teacher(name):
    out = student()(batch().images, return_features=True)
    with pytest.raises(SetupError, match=f"DISTILLER '{name}' needs a teacher, and TEACHER.NAME is ''"):
        build_distiller(config(name, "TEACHER.NAME", ""), NetworkPair(student(), None, out, None, 20))


def test_an_unknown_method_suggests_the_nearest():
    with pytest.raises(SetupError, match=r"DISTILLER: there is no distiller 'revewkd'\. Did you mean 'reviewkd'\?"):
        Case("revewkd")


def test_distillers_need_no_detectron2():
    code = "import sys; sys.modules['detectron2'] = None; from classification.distillers import DISTILLERS as known"
    code += "; print(len(known))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == str(len(DISTILLERS)), result.stderr
