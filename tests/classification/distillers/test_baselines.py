"""The baselines: each is its loss of kd_det.losses on the right outputs, with its own section's settings."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from classification.models import before_relu
from kd_det.common.errors import SetupError
from kd_det.losses import (
    SimKDLoss,
    at_loss,
    catkd_loss,
    class_activation_maps,
    ctkd_loss,
    ctkd_reversal,
    dist_loss,
    kd_loss,
    kdsvd_loss,
    mlkd_loss,
    nst_loss,
    ofd_loss,
    ofd_margin,
    pkt_loss,
    sp_loss,
    standardize_logits,
)
from tests.classification.distillers.tiny import Case, Tiny, reusing, student, teacher


def logits(case):
    return case.student_out.logits, case.teacher_out.logits


def stages(case, which=slice(None)):
    return case.student_out.stages[which], case.teacher_out.stages[which]


EXPECTED = {
    "sp": lambda case: 2 * sp_loss(*stages(case, slice(-1, None))),
    "nst": lambda case: 2 * nst_loss(*stages(case)),
    "pkt": lambda case: 2 * pkt_loss(case.student_out.pooled, case.teacher_out.pooled),
    "kdsvd": lambda case: 2 * kdsvd_loss(*stages(case), 1),
    "dist": lambda case: 2 * dist_loss(*logits(case), temperature=4.0),
    "mlkd": lambda case: 2 * mlkd_loss(*logits(case)),
    "vid": lambda case: 2 * sum(f(s, t) for f, s, t in zip(case.distiller.levels, *stages(case), strict=True)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_is_its_loss_times_its_weight(name):
    case = Case(name, f"{name.upper()}.WEIGHT", 2.0)
    assert case.losses()[f"loss_{name}"].item() == pytest.approx(EXPECTED[name](case).item(), rel=1e-12)


def test_dists_inner_weights():
    case = Case("dist", "DIST.INTER_WEIGHT", 3.0, "DIST.INTRA_WEIGHT", 0.0, "DIST.TEMPERATURE", 1.0, "DIST.WEIGHT", 1.0)
    expected = dist_loss(*logits(case), inter_weight=3.0, intra_weight=0.0, temperature=1.0)
    assert case.losses()["loss_dist"].item() == expected.item()


def test_catkd_compares_class_activation_maps():
    settings = ("CATKD.RESOLUTION", 4, "CATKD.NORMALIZE", False, "CATKD.WEIGHT", 3.0)
    case = Case("catkd", *settings)
    maps = [
        class_activation_maps(out.map, network.classifier)
        for out, network in ((case.student_out, case.student), (case.teacher_out, case.teacher))
    ]
    expected = 3 * catkd_loss(*maps, resolution=4, normalize=False)
    assert case.losses()["loss_catkd"].item() == expected.item()
    with pytest.raises(SetupError, match=r"CATKD\.RESOLUTION 5: the smaller of the two maps has a side of 4"):
        Case("catkd", "CATKD.RESOLUTION", 5)


def test_ctkds_theta_climbs_while_the_student_descends():
    case = Case("ctkd", "CTKD.EPOCHS", 4)
    assert dict(case.distiller.named_parameters()).keys() == {"theta"}
    for epoch in (0, 2, 9):
        case.distiller.start_epoch(epoch)
        loss = case.losses()["loss_ctkd"]
        theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
        reversal = ctkd_reversal(epoch + 1, epochs=4)
        assert loss.item() == 0.9 * ctkd_loss(*logits(case), theta, reversal=reversal).item()
        (ours,) = torch.autograd.grad(loss, [case.distiller.theta], retain_graph=True)
        temperature = 1 + 20 * theta.sigmoid()
        plain = 0.9 * kd_loss(*logits(case), temperature=temperature.item())
        assert loss.item() == pytest.approx(plain.item(), rel=1e-10)
        # KD times T² grows with T here, or falls: theta follows it upwards, by the factor of the epoch.
        step = 1e-5
        temperatures = (1 + 20 * torch.sigmoid(theta + moved).item() for moved in (-step, step))
        below, above = (0.9 * kd_loss(*logits(case), temperature=value).item() for value in temperatures)
        slope = (above - below) / (2 * step)
        assert ours.item() == pytest.approx(-reversal * slope, rel=1e-4)


def test_mlkds_strong_view_has_no_relations_and_standardize_leaves_the_relations():
    case = Case("mlkd", "DATA.STRONG_VIEW", True, "MLKD.TEMPERATURES", (2.0, 4.0), "MLKD.WEIGHT", 1.0)
    strong = case.distiller(case.batch, case.student_out, case.teacher_out, strong=True)
    expected = sum(kd_loss(*logits(case), temperature=t) for t in (2.0, 4.0))
    assert strong["loss_mlkd_strong"].item() == pytest.approx(expected.item(), rel=1e-12)
    case = Case("mlkd", "STANDARDIZE", True, "MLKD.TEMPERATURES", (2.0,), "MLKD.WEIGHT", 1.0)
    s, t = logits(case)
    relations = mlkd_loss(s, t, temperatures=(2.0,)) - kd_loss(s, t, temperature=2.0)
    expected = relations + kd_loss(standardize_logits(s), standardize_logits(t), temperature=2.0)
    assert case.losses()["loss_mlkd"].item() == pytest.approx(expected.item(), rel=1e-10)


def test_a_strong_view_is_for_mlkd():
    with pytest.raises(SetupError, match=r"DATA\.STRONG_VIEW True: DISTILLER 'kd' trains on one view"):
        Case("kd", "DATA.STRONG_VIEW", True)


@pytest.mark.parametrize("count", [0, 2])
def test_ofd_compares_before_the_relu_with_margins_of_the_teachers_norms(count):
    case = Case("ofd", "OFD.STAGES", count, "OFD.WEIGHT", 3.0)
    used = slice(-count or None, None)
    ours, theirs = (before_relu(out)[used] for out in (case.student_out, case.teacher_out))
    assert all((level < 0).any() for level in ours + theirs)
    connected = [connector(level) for connector, level in zip(case.distiller.connectors, ours, strict=True)]
    margins = [ofd_margin(norm.weight, norm.bias) for norm in case.teacher.norms[used]]
    assert case.losses()["loss_ofd"].item() == pytest.approx(3 * ofd_loss(connected, theirs, margins).item(), rel=1e-6)
    assert isinstance(case.distiller.connectors[0][0], nn.Conv2d)
    assert not any("margin" in key for key in case.distiller.state_dict())


def test_ofd_needs_a_teacher_with_norms_and_as_many_stages():
    without = teacher()
    without.norms_before_relu = lambda: [None, *without.norms[1:]]
    with pytest.raises(SetupError, match=r"TEACHER\.NAME 'large' does not end each stage with batch normalisation"):
        Case("ofd", networks=(student(), without))
    with pytest.raises(SetupError, match=r"OFD\.STAGES 4: both networks have 3 stages"):
        Case("ofd", "OFD.STAGES", 4)
    # One stage more on either side: the last ones are compared.
    case = Case("ofd", networks=(student(), Tiny((5, 7))))
    assert len(case.distiller.connectors) == 2


@pytest.mark.parametrize("networks", [(student(), Tiny((5, 7))), (Tiny((4, 6)), teacher())])
def test_networks_of_different_depth_are_compared_by_their_last_stages(networks):
    """Whichever of the two has fewer stages."""
    case = Case("at", "AT.STAGES", 2, "AT.WEIGHT", 3.0, networks=networks)
    expected = at_loss(case.student_out.stages[-2:], case.teacher_out.stages[-2:], power=2)
    assert case.losses()["loss_at"].item() == pytest.approx(3 * expected.item(), rel=1e-12)
    one, two = (Case("reviewkd", "REVIEWKD.STAGES", count, networks=networks) for count in (1, 2))
    levels = [each.distiller.fusion(each.distiller._student_levels(each.student_out)) for each in (one, two)]
    assert [len(level) for level in levels] == [2, 3]  # the stages and the pooled feature
    assert two.losses()["loss_reviewkd"].isfinite()
    for name in ("AT", "REVIEWKD"):
        with pytest.raises(SetupError, match=rf"or set {name}\.STAGES to the number of last stages .*, up to 2"):
            Case(name.lower(), networks=networks)
        with pytest.raises(SetupError, match=rf"{name}\.STAGES 3: one of the networks has only 2 stages"):
            Case(name.lower(), f"{name}.STAGES", 3, networks=networks)
    with pytest.raises(SetupError, match="or take 'fitnet', which compares one stage"):
        Case("nst", networks=networks)


@pytest.mark.parametrize("side", [16, 32])
def test_simkd_is_simkdloss_and_its_student_classifies_by_the_teachers_classifier(side):
    """At 32 the student's map, 8 x 8, is pooled to the 4 x 4 for which it was made."""
    body, theirs = student(), teacher()
    model = reusing(body, theirs)
    plain = sum(p.numel() for p in student().parameters())
    case = Case("simkd", "SIMKD.WEIGHT", 2.0, networks=(model, theirs), side=side)
    reference = SimKDLoss(8, 9).double().eval()
    reference.projector.load_state_dict(model.projector.state_dict())
    map_of_body = body(case.batch.images, return_features=True).map
    target = nn.functional.adaptive_avg_pool2d(case.teacher_out.map, 4)
    torch.testing.assert_close(case.losses()["loss_simkd"], 2 * reference(map_of_body, target))
    expected = reference.logits(map_of_body, theirs.classifier, (4, 4))
    torch.testing.assert_close(case.student_out.logits, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(model(case.batch.images), case.student_out.logits)
    # All that it needs is its own, and counted; its own former classifier is gone.
    assert not list(case.distiller.parameters())
    assert sum(p.numel() for p in model.parameters()) == plain + model.added_parameters
    assert not any(p.requires_grad for p in model.classifier.parameters())


def test_crd_draws_negatives_of_other_classes_and_keeps_its_memories():
    case = Case("crd", "CRD.NEGATIVES", 7, "CRD.FEATURE_DIM", 6, "CRD.WEIGHT", 1.0)
    loss = case.distiller.loss
    before = loss.student_memory.clone()
    assert case.losses()["loss_crd"] > 0
    changed = (loss.student_memory != before).any(1).nonzero().flatten()
    assert changed.tolist() == case.batch.indices.tolist()
    assert loss.negatives == 7 and loss.student_memory.shape == (100, 6)


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        *((name, f"{name.upper()}.WEIGHT", (-1.0,)) for name in ("sp", "nst", "pkt", "kdsvd", "vid", "ofd", "simkd")),
        *((name, f"{name.upper()}.WEIGHT", (float("nan"),)) for name in ("crd", "dist", "mlkd", "ctkd", "catkd")),
        ("kdsvd", "KDSVD.K", (0, 5)),
        ("vid", "VID.INIT_VARIANCE", (0.0,)),
        ("crd", "CRD.NEGATIVES", (0,)),
        ("crd", "CRD.MOMENTUM", (1.0,)),
        ("dist", "DIST.TEMPERATURE", (0.0,)),
        ("ctkd", "CTKD.START", (0.0,)),
        ("catkd", "CATKD.RESOLUTION", (0,)),
    ],
)
def test_bad_settings_are_named_at_start_up(name, key, values):
    for value in values:
        with pytest.raises(SetupError, match=rf"{re.escape(key)} (is )?{re.escape(str(value))}[:;] "):
            Case(name, key, value)


@pytest.mark.parametrize("value", [(), 3.0, (2.0, 0.0)])
def test_temperatures_of_mlkd(value):
    from classification.schema import temperatures

    with pytest.raises(SetupError, match=r"MLKD\.TEMPERATURES is"):
        temperatures("MLKD.TEMPERATURES", value)


def test_kdsvd_of_other_channels_and_methods_of_stages_with_other_numbers_of_them():
    with pytest.raises(SetupError, match=r"equal channels, but STUDENT\.NAME 'tiny' has \[4, 6, 8\]"):
        Case("kdsvd", networks=(student(), teacher()))
    for name in ("nst", "vid", "kdsvd"):
        with pytest.raises(SetupError, match=r"'tiny' has 3 stages and TEACHER\.NAME 'large' has 2"):
            Case(name, networks=(student(), Tiny((5, 7))))
