"""Every KD term in the detector: a finite loss, gradients on one side only; the terms on logits by their formulas."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from kd_det.common.errors import SetupError
from kd_det.config import plain_config
from kd_det.losses import dkd_loss, kd_loss, nkd_loss
from kd_det.modeling.regions import on_shared_classes
from kd_det.modeling.terms import TERMS, FeatureTerm, KDTerm, LogitTerm, register_term
from kd_det.modeling.terms.cells import Cells, choose_boxes, classify_cells
from kd_det.teacher.box_stages import BoundBoxStage, box_stages
from kd_det.teacher.classes import class_map
from tests.modeling.test_any_rcnn import CASCADE, distilling
from tests.modeling.test_distill_rcnn import Calls
from tests.tiny import batch, build, loss_gradients, shared_regions, student_config, teacher_files

NAMES = tuple(sorted(TERMS))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


def weights(value: float) -> list:
    return [item for name in NAMES for item in (f"KD.{name.upper()}.WEIGHT", value)]


def step_seen(model, name):
    """The losses of a step, and what the term was given in it."""
    seen = Calls(model.terms[name])
    losses = model(batch())
    return losses, seen.inputs[0][0]


def test_all_methods_are_there():
    assert {"kd", "dkd", "nkd", "sdd", "reviewkd", "fitnet", "fgfi", "pkd"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_finite_loss_with_gradients_in_the_student_and_none_in_the_teacher(teacher, name):
    model = build(student_config(teacher, terms=(name,)))
    model.load_teacher()
    before = copy.deepcopy(model.teacher.model.state_dict())
    losses, inputs = step_seen(model, name)
    loss = losses[f"loss_{name}"]
    assert loss.shape == () and loss.dtype == torch.float32 and torch.isfinite(loss) and loss > 0
    loss.backward()
    backbone = [model.backbone.bottom_up.res3[0].conv1.weight.grad, model.backbone.fpn_lateral5.weight.grad]
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in backbone)
    learnt = list(model.terms[name].parameters())
    assert not learnt or any(parameter.grad.any() for parameter in learnt)
    frozen = model.teacher.model
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen.parameters())
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert not any(values.requires_grad for values in inputs.teacher_features.values())
    assert not any(regions.teacher_logits.requires_grad for regions in inputs.regions)


@pytest.mark.parametrize("name", NAMES)
def test_weight_0_gives_exactly_the_plain_losses_and_gradients(teacher, name):
    cfg = student_config(teacher, *weights(0.0), terms=(name,))
    distilled, plain = build(cfg), build(plain_config(cfg))
    plain.load_state_dict(distilled.state_dict())
    losses, gradients = loss_gradients(distilled, batch())
    expected_losses, expected_gradients = loss_gradients(plain, batch())
    assert losses.pop(f"loss_{name}") == 0 and losses == expected_losses
    assert {key for key in gradients if not key.startswith("terms.")} == set(expected_gradients)
    assert all(torch.equal(gradients[key], value) for key, value in expected_gradients.items())


@pytest.mark.parametrize("name", NAMES)
def test_images_without_objects_and_a_batch_without_any(teacher, name):
    model = build(student_config(teacher, terms=(name,)))
    for objects in ((0, 3), (0, 0)):
        inputs = [batch(1, objects=count)[0] for count in objects]
        losses, gradients = loss_gradients(model, inputs)
        assert torch.isfinite(losses[f"loss_{name}"])
        assert (losses[f"loss_{name}"] == 0) == (name == "fgfi" and not any(objects))
        assert all(torch.isfinite(value).all() for value in gradients.values())
        # Even where there is nothing to imitate: several processes wait for the gradient of every parameter.
        assert {f"terms.{key}" for key, _ in model.terms.named_parameters()} <= set(gradients)


@pytest.mark.parametrize("names", [("dkd", "reviewkd"), NAMES], ids=["two", "all"])
def test_terms_together_add_up(teacher, names):
    together = build(student_config(teacher, *weights(2.0), terms=names))
    student, learnt = (copy.deepcopy(part.state_dict()) for part in (together, together.terms))
    losses, gradients = loss_gradients(together, batch())
    plain = build(student_config(teacher, terms=()))
    plain.load_state_dict(student)
    plain_losses, expected = loss_gradients(plain, batch())
    key = "backbone.fpn_output3.weight"
    summed = expected[key].clone()
    for name in names:
        single = build(student_config(teacher, *weights(1.0), terms=(name,)))
        single.load_state_dict(student)
        single.terms.load_state_dict({k: v for k, v in learnt.items() if k.startswith(f"{name}.")})
        alone, own = loss_gradients(single, batch())
        torch.testing.assert_close(losses[f"loss_{name}"], 2 * alone[f"loss_{name}"])
        summed += 2 * (own[key] - expected[key])
    assert losses.keys() == plain_losses.keys() | {f"loss_{name}" for name in names}
    torch.testing.assert_close(gradients[key], summed, rtol=1e-3, atol=1e-4 * summed.abs().max().item())


def test_nkd_is_the_loss_of_the_two_heads_logits(teacher):
    settings = ["KD.NKD.GAMMA", 0.7, "KD.NKD.TEMPERATURE", 2.0, "KD.NKD.WEIGHT", 3.0]
    losses, inputs = step_seen(build(student_config(teacher, *settings, terms=("nkd",))), "nkd")
    (shared,) = inputs.regions
    expected = nkd_loss(shared.student_logits, shared.teacher_logits, shared.labels, gamma=0.7, temperature=2.0)
    torch.testing.assert_close(losses["loss_nkd"], 3 * expected)


def explicit_cell_logits(heads, stage, maps, boxes, kind):
    """(R, K+1, 4) by explicit pooling; the tiny boxes all lie on the head's first level."""
    rois = torch.cat([torch.cat((torch.full((len(b), 1), float(i)), b.tensor), 1) for i, b in enumerate(boxes)])
    image, x0, y0, x1, y1 = rois.unbind(1)
    assert ((x1 - x0) * (y1 - y0)).max() < 112**2
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    quarters = [(x0, y0, middle_x, middle_y), (middle_x, y0, x1, middle_y), (x0, middle_y, middle_x, y1)]
    quarters.append((middle_x, middle_y, x1, y1))

    def pool(corners, resolution):
        return roi_align(maps["p2"], torch.stack((image, *corners), 1), resolution, 0.25, aligned=True)

    if kind == "grid":
        pooled = [pool(corners, 3) for corners in quarters]
    else:
        fine = pool((x0, y0, x1, y1), 6)
        pooled = [fine[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.stack([stage.predictor(stage.head(cell))[0] for cell in pooled], dim=2)


def cells_of(regions, cells):
    """Which proposals are divided, and the student's and the teacher's logits of their cells."""
    rows = cells.rows(len(regions.labels), regions.labels.device)
    boxes = choose_boxes(regions.boxes, rows)
    return rows, *(classify_cells(stage, boxes, cells) for stage in (regions.student_stage, regions.teacher_stage))


def sdd(s, t, y, base, weight):
    """Region by region, proposal by proposal."""
    losses = []
    for proposal in range(len(y)):
        right = t[proposal].argmax(0) == y[proposal]
        for region in range(s.shape[2]):
            one = (s[proposal : proposal + 1, :, region], t[proposal : proposal + 1, :, region])
            factor = weight if right[region] != right[0] else 1.0
            losses.append(factor * base(*one, y[proposal : proposal + 1]))
    return torch.stack(losses).mean()


FORMULAS = {
    "kd": lambda s, t, y: kd_loss(s, t, temperature=3.0),
    "dkd": lambda s, t, y: dkd_loss(s, t, y, alpha=1.0, beta=0.5, temperature=1.0),
    "nkd": lambda s, t, y: nkd_loss(s, t, y, gamma=0.7, temperature=1.0),
}
BASE_SETTINGS = ["KD.KD.TEMPERATURE", 3.0, "KD.DKD.BETA", 0.5, "KD.NKD.GAMMA", 0.7, "KD.DKD.WEIGHT", 0.0]


@pytest.mark.parametrize("base", FORMULAS)
@pytest.mark.parametrize("kind", ["grid", "interleaved"])
def test_sdd_is_the_formula_on_explicitly_pooled_cells(teacher, kind, base):
    settings = ["KD.SDD.CELLS", kind, "KD.SDD.BASE", base, "KD.SDD.COMPLEMENTARY_WEIGHT", 3.0, "KD.SDD.WEIGHT", 2.0]
    model = build(student_config(teacher, *BASE_SETTINGS, *settings, terms=("sdd",)))
    model.load_teacher()
    pooled = Calls(model.roi_heads.box_pooler)
    runs = [Calls(model.roi_heads.box_head), Calls(model.teacher.model.roi_heads.box_head)]
    losses, inputs = step_seen(model, "sdd")
    # The whole proposals and all their cells: one batch each, for either network.
    assert [[len(given[0]) for given in calls.inputs] for calls in runs] == [[32, 128], [32, 128]]
    (shared,), boxes = inputs.regions, pooled.inputs[0][1]
    _, *both = cells_of(shared, model.terms["sdd"].cells)
    logits = []
    for heads, maps, whole, cells in (
        (model.roi_heads, inputs.student_features, shared.student_logits, both[0]),
        (model.teacher.model.roi_heads, inputs.teacher_features, shared.teacher_logits, both[1]),
    ):
        expected = explicit_cell_logits(heads, box_stages(heads)[0], maps, boxes, kind)
        torch.testing.assert_close(cells, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(expected[..., 0], expected[..., 3], atol=1e-2)
        logits.append(torch.cat((whole.unsqueeze(2), expected), dim=2))
    expected = sdd(*logits, shared.labels, FORMULAS[base], 3.0)
    torch.testing.assert_close(losses["loss_sdd"], 2 * expected, rtol=1e-3, atol=1e-5)
    right = logits[1].argmax(1) == shared.labels[:, None]
    assert (right[:, 1:] != right[:, :1]).any()  # some regions are complementary


def test_sdd_at_one_scale_is_its_base(teacher):
    settings = ["KD.SDD.SCALES", (1,), *BASE_SETTINGS]
    model = build(student_config(teacher, *settings, terms=("sdd",)))
    head = Calls(model.roi_heads.box_head)
    losses, inputs = step_seen(model, "sdd")
    assert len(head.inputs) == 1
    (shared,) = inputs.regions
    expected = FORMULAS["dkd"](shared.student_logits, shared.teacher_logits, shared.labels)
    torch.testing.assert_close(losses["loss_sdd"], expected)


def test_sdd_of_some_proposals_cells_has_every_whole_in_it(teacher):
    model = build(student_config(teacher, *BASE_SETTINGS, "KD.SDD.PROPOSALS", 6, terms=("sdd",)))
    model.load_teacher()
    heads = [Calls(model.roi_heads.box_head), Calls(model.teacher.model.roi_heads.box_head)]
    pooled = Calls(model.roi_heads.box_pooler)
    losses, inputs = step_seen(model, "sdd")
    assert [[len(given[0]) for given in calls.inputs] for calls in heads] == [[32, 24], [32, 24]]
    (shared,), boxes = inputs.regions, pooled.inputs[0][1]
    rows = [0, 5, 10, 16, 21, 26]  # of 16 proposals of either image, three each
    divided, *both = cells_of(shared, model.terms["sdd"].cells)
    assert divided.tolist() == rows
    heads = model.roi_heads
    every_cell = explicit_cell_logits(heads, box_stages(heads)[0], inputs.student_features, boxes, "grid")
    torch.testing.assert_close(both[0], every_cell[rows], rtol=1e-3, atol=1e-3)
    s, t = (
        torch.cat((whole[rows].unsqueeze(2), cells), dim=2)
        for whole, cells in zip((shared.student_logits, shared.teacher_logits), both, strict=True)
    )
    of_sample = sdd(s, t, shared.labels[rows], FORMULAS["dkd"], 2.0)
    wholes = [FORMULAS["dkd"](s[i : i + 1, :, 0], t[i : i + 1, :, 0], shared.labels[rows][i : i + 1]) for i in range(6)]
    cells = of_sample - torch.stack(wholes).mean() / 5
    every_whole = FORMULAS["dkd"](shared.student_logits, shared.teacher_logits, shared.labels)
    torch.testing.assert_close(losses["loss_sdd"], every_whole / 5 + cells, rtol=1e-3, atol=1e-5)


def stage_on(values):
    """A box stage on one map with a channel for each class: the logits of a box are the map's means over it."""
    pooler = ROIPooler(2, [1.0], sampling_ratio=2, pooler_type="ROIAlignV2")
    return BoundBoxStage(pooler, [values], lambda pooled: pooled.mean((2, 3)), lambda x: (x, x))


def test_some_proposals_left_out_by_the_class_map_take_their_cells_along(teacher):
    term = build(student_config(teacher, *BASE_SETTINGS, terms=("sdd",))).terms["sdd"]
    term.cells = Cells((2,), boxes=2)
    rng = torch.Generator().manual_seed(0)
    s_map, t_map = (torch.randn(1, 3, 16, 16, generator=rng) for _ in range(2))
    corners = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [4, 4, 12, 12]])
    boxes, labels = [Boxes(corners)], torch.tensor([0, 1, 1, 2])
    ours, theirs = stage_on(s_map), stage_on(t_map)
    s, t = (stage.logits(stage.pool(boxes)) for stage in (ours, theirs))
    classes = class_map(["dog"], ["cat", "dog"], ["cat", "dog"])
    given = shared_regions(s, t, labels, boxes, student_stage=ours, teacher_stage=theirs)
    shared = on_shared_classes(given, classes)
    assert shared.labels.tolist() == [0, 0, 1] and torch.equal(shared.boxes[0].tensor, corners[1:])
    # Proposals 0 and 2 of all four are divided, and 0 is left out.
    whole = FORMULAS["dkd"](s[1:, 1:], t[1:, 1:], shared.labels)
    cells = [classify_cells(stage, [boxes[0][2:3]], term.cells)[:, 1:] for stage in (ours, theirs)]
    regions = [torch.cat((w[2:3, 1:, None], c), dim=2) for w, c in zip((s, t), cells, strict=True)]
    divided = sdd(*regions, torch.tensor([0]), FORMULAS["dkd"], 2.0)
    alone = FORMULAS["dkd"](s[2:3, 1:], t[2:3, 1:], torch.tensor([0]))
    torch.testing.assert_close(term.region_loss(shared), divided + (whole - alone) / 5)


def test_sdd_at_three_scales(teacher):
    settings = ["KD.SDD.SCALES", (1, 2, 4), "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4]
    model = build(student_config(teacher, *settings, terms=("sdd",)))
    losses, inputs = step_seen(model, "sdd")
    _, *both = cells_of(inputs.regions[0], model.terms["sdd"].cells)
    assert [logits.shape for logits in both] == [(8, 4, 20)] * 2
    assert losses["loss_sdd"] > 0


def test_sdd_on_the_classes_that_both_networks_have(teacher):
    rng = torch.Generator().manual_seed(0)
    s_map = torch.randn(1, 4, 16, 16, generator=rng).requires_grad_()
    t_map = torch.randn(1, 5, 16, 16, generator=rng)
    boxes = [Boxes(torch.tensor([[float(i), 1, i + 6, 9] for i in range(5)]))]
    classes = class_map(["cat", "person"], ["cat", "dog", "person"], ["person", "bus", "cat", "car"])
    term = build(student_config(teacher, *BASE_SETTINGS, terms=("sdd",))).terms["sdd"]

    def loss_of(labels, chosen):
        stages = {"student_stage": stage_on(s_map), "teacher_stage": stage_on(t_map)}
        s, t = (stage.logits(stage.pool(chosen)) for stage in stages.values())
        return term.region_loss(on_shared_classes(shared_regions(s, t, labels, chosen, **stages), classes))

    kept, ours, theirs = [1, 2, 4], [0, 2, 3], [2, 0, 4]
    both = []
    for stage, columns in ((stage_on(s_map), ours), (stage_on(t_map), theirs)):
        whole = stage.logits(stage.pool(boxes)).unsqueeze(2)
        both.append(torch.cat((whole, classify_cells(stage, boxes, Cells((2,)))), dim=2)[kept][:, columns])
    expected = sdd(*both, torch.tensor([0, 2, 1]), FORMULAS["dkd"], 2.0)
    torch.testing.assert_close(loss_of(torch.tensor([1, 0, 3, 1, 2]), boxes), expected)
    loss = loss_of(torch.tensor([1, 1]), [boxes[0][:2]])
    loss.backward()
    assert loss == 0 and s_map.grad is not None and not s_map.grad.any()


@pytest.fixture(scope="module")
def cascade_teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("cascade"), *CASCADE)


@pytest.mark.parametrize("kind", ["grid", "interleaved"])
def test_a_cascade_sums_sdd_and_dkd_over_its_stages(cascade_teacher, kind):
    settings = [*distilling(CASCADE), "KD.SDD.CELLS", kind, "KD.DKD.BETA", 0.5]
    model = build(student_config(cascade_teacher, *settings, terms=("sdd", "dkd")))
    model.load_teacher()
    losses, inputs = step_seen(model, "sdd")
    assert len(inputs.regions) == 3
    stages = box_stages(model.roi_heads), model.teacher.stages
    assert [len(each) for each in stages] == [3, 3]
    by_stage = {"loss_dkd": [], "loss_sdd": []}
    for shared in inputs.regions:
        _, *both = cells_of(shared, model.terms["sdd"].cells)
        s, t = (
            torch.cat((whole.unsqueeze(2), cells), dim=2)
            for whole, cells in zip((shared.student_logits, shared.teacher_logits), both, strict=True)
        )
        by_stage["loss_dkd"].append(FORMULAS["dkd"](s[..., 0], t[..., 0], shared.labels))
        by_stage["loss_sdd"].append(sdd(s, t, shared.labels, FORMULAS["dkd"], 2.0))
    for name, values in by_stage.items():
        assert len({round(value.item(), 6) for value in values}) == 3
        torch.testing.assert_close(losses[name], sum(values), rtol=1e-4, atol=1e-6)


def test_a_cascades_cells_give_the_backbone_the_gradient_of_a_mean_over_stages(cascade_teacher):
    """As Detectron2 divides the gradient of each stage's pooled regions by the number of stages."""
    model = build(student_config(cascade_teacher, *distilling(CASCADE), terms=("sdd",)))
    pooled = Calls(model.roi_heads.box_pooler)
    _, inputs = step_seen(model, "sdd")
    maps, boxes = inputs.student_features, pooled.inputs[0][1]
    _, ours, _ = cells_of(inputs.regions[0], model.terms["sdd"].cells)
    plain = explicit_cell_logits(model.roi_heads, box_stages(model.roi_heads)[0], maps, boxes, "grid")
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    gradients = [
        torch.autograd.grad((values * probe).sum(), maps["p2"], retain_graph=True)[0] for values in (ours, plain)
    ]
    scale = gradients[1].abs().max().item()
    torch.testing.assert_close(3 * gradients[0], gradients[1], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("KD.SDD.BASE", "dkdd", r"KD\.SDD\.BASE is 'dkdd'.*kd, dkd, nkd.*Did you mean 'dkd'"),
        ("KD.SDD.CELLS", "gird", r"KD\.SDD\.CELLS is 'gird'.*grid, interleaved.*Did you mean 'grid'"),
        ("KD.SDD.SCALES", (2,), r"KD\.SDD\.SCALES is \(2,\); it must be 1, the whole proposal"),
        ("KD.SDD.SCALES", (2, 1), r"KD\.SDD\.SCALES is \(2, 1\)"),
        ("KD.SDD.SCALES", (1, 2, 2), r"KD\.SDD\.SCALES is \(1, 2, 2\)"),
        ("KD.SDD.SCALES", (1, 0), r"KD\.SDD\.SCALES is \(1, 0\)"),
        ("KD.SDD.SCALES", (1, 2.5), r"KD\.SDD\.SCALES is \(1, 2\.5\)"),
        ("KD.SDD.SCALES", (), r"KD\.SDD\.SCALES is \(\)"),
        ("KD.SDD.PROPOSALS", -1, r"KD\.SDD\.PROPOSALS is -1; it must be a whole number, 0 or more"),
        ("KD.SDD.COMPLEMENTARY_WEIGHT", -1.0, r"KD\.SDD\.COMPLEMENTARY_WEIGHT is -1\.0; it must be"),
        ("KD.DKD.TEMPERATURE", 0.0, r"KD\.DKD\.TEMPERATURE is 0\.0"),
    ],
)
def test_invalid_settings_of_sdd(teacher, key, value, message):
    with pytest.raises(SetupError, match=message):
        build(student_config(teacher, key, value, terms=("sdd",)))


@pytest.mark.parametrize("key, value", [("GAMMA", -0.5), ("GAMMA", float("nan")), ("TEMPERATURE", 0.0)])
def test_invalid_settings_of_nkd(teacher, key, value):
    with pytest.raises(SetupError, match=re.escape(f"KD.NKD.{key} is {value}; it must be a")):
        build(student_config(teacher, f"KD.NKD.{key}", value, terms=("nkd",)))


@pytest.mark.parametrize("name", NAMES)
def test_invalid_weights(teacher, name):
    with pytest.raises(SetupError, match=rf"KD\.{name.upper()}\.WEIGHT is -1\.0; it must be a finite number"):
        build(student_config(teacher, *weights(-1.0), terms=(name,)))


@pytest.fixture
def registered():
    """``register_term``, undone after the test."""
    before = set(TERMS)
    yield register_term
    for name in set(TERMS) - before:
        del TERMS[name]


def test_two_terms_may_want_different_cells(teacher, registered):
    @registered("thirds")
    class Thirds(LogitTerm):
        def __init__(self, cfg, maps):
            super().__init__(weight=1.0)

        def region_loss(self, regions):
            cells = Cells((3,))
            ours, theirs = (
                classify_cells(stage, regions.boxes, cells) for stage in (regions.student_stage, regions.teacher_stage)
            )
            assert ours.shape == theirs.shape == (32, 4, 9) and not theirs.requires_grad
            return (ours - theirs).square().mean()

    losses, gradients = loss_gradients(build(student_config(teacher, terms=("thirds", "sdd"))), batch())
    alone, _ = loss_gradients(build(student_config(teacher, terms=("sdd",))), batch())
    assert losses["loss_thirds"] > 0 and losses["loss_sdd"] == alone["loss_sdd"]
    assert gradients["roi_heads.box_head.fc1.weight"].any()


def test_a_feature_term_of_ones_own_takes_channels_from_the_maps(teacher, registered):
    @registered("own_maps")
    class OwnMaps(FeatureTerm):
        def map_loss(self, student, teacher, inputs):
            return sum((ours - theirs).abs().mean() for ours, theirs in zip(student, teacher, strict=True))

    model = build(student_config(teacher, terms=("own_maps",)))
    losses, gradients = loss_gradients(model, batch())
    assert losses["loss_own_maps"] > 0
    adapters = {name: tuple(value.shape) for name, value in model.terms.named_parameters() if name.endswith("weight")}
    assert adapters == {f"own_maps.adapt.{level}.weight": (24, 16, 1, 1) for level in range(5)}
    assert all(gradients[f"terms.{name}"].any() for name in adapters)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda loss: loss, r"the term 'wrong' returned a tensor of shape \(\)\. Its forward must return a dict"),
        (lambda loss: None, r"returned a NoneType\. Its forward must return a dict of .*\{'loss_wrong': loss"),
        (lambda loss: {"wrong": loss}, r"returned a loss named 'wrong'\. The name must start with 'loss_'"),
        (lambda loss: {"loss_wrong": loss.expand(2, 3)}, r"returned a tensor of shape \(2, 3\) as 'loss_wrong'.*sca"),
        (lambda loss: {"loss_wrong": 0.5}, r"returned a float as 'loss_wrong'\. It must be a scalar tensor"),
        (lambda loss: {"loss_cls": loss}, r"returned 'loss_cls', but there is such a loss; rename it"),
        (lambda loss: {"loss_dkd": loss}, r"returned 'loss_dkd', but there is such a loss"),
    ],
)
def test_a_term_that_returns_no_named_scalars_is_told_so_in_its_first_step(teacher, registered, returned, message):
    @registered("wrong")
    class Wrong(KDTerm):
        def __init__(self, cfg, maps):
            super().__init__()

        def forward(self, inputs):
            return returned(inputs.student_features["p3"].mean())

    model = build(student_config(teacher, terms=("dkd", "wrong")))
    with pytest.raises(SetupError, match=rf"KD\.TERMS: .*{message}"):
        model(batch())
