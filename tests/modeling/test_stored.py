"""Training from stored boxes and logits: which proposals the terms see, and that no teacher is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from detectron2.structures import Boxes, Instances

from kd_det.common.errors import SetupError
from kd_det.config import plain_config
from kd_det.modeling import meta_arch
from kd_det.modeling.stored import carry_rows, rows_of
from kd_det.modeling.terms import TERMS, LogitTerm, register_term
from kd_det.teacher.frozen import FrozenTeacher
from tests.knowledge import around_objects, empty_knowledge, with_stored
from tests.modeling.test_any_rcnn import CASCADE, KEYPOINTS, KINDS, distilling, keypoint_batch
from tests.modeling.test_distill_rcnn import Calls
from tests.tiny import batch, build, loss_gradients, student_config, teacher_files

NOBODY = ("", "")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def folder(tmp_path):
    return empty_knowledge(tmp_path / "knowledge")


@pytest.fixture
def seen() -> Iterator[list]:
    """The regions of each box stage that the term "recorded" was given in the last step."""
    given: list = []

    @register_term("recorded")
    class Recorded(LogitTerm):
        def __init__(self, cfg, maps):
            super().__init__(weight=1.0)

        def region_loss(self, regions):
            return regions.student_logits.sum() * 0

        def forward(self, inputs):
            given[:] = inputs.regions
            return super().forward(inputs)

    yield given
    del TERMS["recorded"]


@pytest.fixture
def no_teacher(monkeypatch):
    def build_teacher(*args, **kwargs):
        raise AssertionError("a teacher was built")

    monkeypatch.setattr(meta_arch, "load_teacher", build_teacher)


def student(folder, *overrides, teacher=NOBODY, terms=("recorded",)):
    return build(student_config(teacher, "KD.TEACHER.STORED", folder, *overrides, terms=terms))


def table(boxes: list, logits: list) -> dict[tuple, torch.Tensor]:
    """From the image's number and the box to its logits."""
    return {
        (number, *box): row
        for number, (of_image, rows) in enumerate(zip(boxes, logits, strict=True))
        for box, row in zip(of_image.tolist(), rows, strict=True)
    }


def sampled(calls: Calls, stage: int = 0) -> list[tuple]:
    """The boxes that the student's pooler was given: the image's number and the corners."""
    return [(number, *box) for number, boxes in enumerate(calls.inputs[stage][1]) for box in boxes.tensor.tolist()]


def seen_boxes(regions) -> list[tuple]:
    return [(number, *box) for number, boxes in enumerate(regions.boxes) for box in boxes.tensor.tolist()]


def dkd64(student, teacher, labels, alpha: float, beta: float) -> float:
    """The formula of DKD at temperature 1, row by row, with Python's floats."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = ([math.exp(value) for value in row] for row in (t, s))
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        target = p[y] * math.log(p[y] / q[y]) + (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        others = [(a / (1 - p[y]), b / (1 - q[y])) for c, (a, b) in enumerate(zip(p, q, strict=True)) if c != y]
        total += alpha * target + beta * sum(a * math.log(a / b) for a, b in others)
    return total / len(labels)


@pytest.mark.parametrize("extra", [[], ["MODEL.MASK_ON", True], KEYPOINTS], ids=["box", "mask", "keypoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_terms_see_the_sampled_stored_boxes_with_their_logits(folder, seen, no_teacher, kind, extra):
    if kind == "c4" and extra is KEYPOINTS:
        extra = []  # Detectron2's C4 heads know no keypoints
    heads = [*distilling(KINDS[kind]), *extra, "KD.DKD.BETA", 0.5]
    model = student(folder, *heads, terms=("recorded", "dkd"))
    pooler = Calls(model.roi_heads.pooler if kind == "c4" else model.roi_heads.box_pooler)
    predictors = model.roi_heads.box_predictor
    predictor = Calls(predictors[0] if kind == "cascade" else predictors)
    items = keypoint_batch() if extra is KEYPOINTS else batch()
    boxes, logits = around_objects(items)
    known = table(boxes, logits)
    losses, gradients = loss_gradients(model, with_stored(items, boxes, logits))

    chosen = [row for row, box in enumerate(sampled(pooler)) if box in known]
    assert 4 < len(chosen) < 32 and len(seen) == (3 if kind == "cascade" else 1)
    first = seen[0]
    assert seen_boxes(first) == [sampled(pooler)[row] for row in chosen]
    assert torch.equal(first.teacher_logits, torch.stack([known[box] for box in seen_boxes(first)]))
    assert torch.equal(first.student_logits, predictor.outputs[0][0][chosen])
    assert first.kept.nonzero().squeeze(1).tolist() == chosen and set(first.labels.tolist()) > {3}
    expected = sum(dkd64(r.student_logits, r.teacher_logits, r.labels, 1.0, 0.5) for r in seen)
    assert losses["loss_dkd"].item() == pytest.approx(expected, rel=1e-4) and expected > 0
    assert ("loss_mask" in losses) == ("MODEL.MASK_ON" in extra) and ("loss_keypoint" in losses) == (extra is KEYPOINTS)
    assert model.teacher is None
    assert gradients["backbone.res4.0.conv1.weight" if kind == "c4" else "backbone.fpn_output2.weight"].any()


def test_replaced_boxes_keep_their_rows(folder, seen):
    """TRAIN_ON_PRED_BOXES replaces the proposals' boxes after the box head has looked at them."""
    model = student(folder, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "MODEL.MASK_ON", True)
    items = batch()
    boxes, logits = around_objects(items)
    known = table(boxes, logits)
    model(with_stored(items, boxes, logits))
    assert torch.equal(seen[0].teacher_logits, torch.stack([known[box] for box in seen_boxes(seen[0])]))


def test_later_stages_follow_the_boxes_of_the_first(folder, seen, monkeypatch):
    """Every second box of a stage leaves the image to the right, and Detectron2 drops it; others move by a pixel."""
    model = student(folder, *distilling(CASCADE))

    def moved(predictions, proposals):
        answers = []
        for instances in proposals:
            shift = torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat(len(instances), 1)
            shift[::2, ::2] = 1000.0
            answers.append(instances.proposal_boxes.tensor + shift)
        return answers

    monkeypatch.setattr(model.roi_heads.box_predictor[0], "predict_boxes", moved)
    items = batch()
    boxes, logits = around_objects(items)
    boxes = [of_image.clamp(max=60.0) for of_image in boxes]  # a pixel more is still inside
    known = table(boxes, logits)
    losses = model(with_stored(items, boxes, logits))
    assert len(seen) == 3 and 0 < len(seen[1].labels) < len(seen[0].labels)
    followed = {(number, x0 + 1, y0, x1 + 1, y1): row for (number, x0, y0, x1, y1), row in known.items()}
    assert torch.equal(seen[1].teacher_logits, torch.stack([followed[box] for box in seen_boxes(seen[1])]))
    assert len(seen[1].kept) < len(seen[0].kept) and all(torch.isfinite(value) for value in losses.values())


def test_rows_of_dropped_boxes_are_dropped():
    before = Instances((20, 30), proposal_boxes=Boxes(torch.rand(4, 4)), stored_row=torch.tensor([5, -1, 7, 8]))
    predicted = torch.tensor([[1.0, 1, 5, 5], [-9, 2, -1, 9], [25, 15, 99, 99], [3, 30, 9, 40]])
    after = Instances((20, 30), proposal_boxes=Boxes(predicted[[0, 2]]))
    carry_rows([before], [predicted], [after])
    assert after.stored_row.tolist() == [5, 7]
    plain = Instances((20, 30), proposal_boxes=Boxes(predicted))
    carry_rows([plain], [predicted], [Instances((20, 30), proposal_boxes=Boxes(predicted))])
    assert rows_of([plain]) is None


def test_it_is_the_live_teachers_loss_on_the_same_boxes_and_logits(folder, teacher):
    given = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False]
    items = batch()
    boxes, _ = around_objects(items, 16)
    live = build(student_config(teacher, *given))
    features = live.load_teacher().features(items, live.input_format, live.device)
    found = live.teacher.box_logits(features, [Boxes(of_image) for of_image in boxes]).log_softmax(1)
    stored = with_stored(items, boxes, found.split([16, 16]))
    nothing = Instances((64, 96), proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))
    expected, expected_gradients = loss_gradients(
        live, [{**item, "proposals": each["stored"]} for item, each in zip(items, stored, strict=True)]
    )
    model = student(folder, *given, terms=("dkd",), teacher=NOBODY)
    model.load_state_dict(live.state_dict())
    losses, gradients = loss_gradients(model, [{**item, "proposals": nothing} for item in stored])
    assert losses.keys() == expected.keys() and losses["loss_dkd"] > 0 and len(gradients) > 20
    assert len(expected) == 3
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=0, msg=name)
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-5 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("fraction, most", [(0.25, 4), (0.3, 4), (1.0, 12)])
def test_the_best_join_up_to_the_fraction_of_the_sampled(folder, seen, fraction, most):
    model = student(folder, "KD.STORED.FRACTION", fraction, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16)
    items = batch()
    boxes, logits = around_objects(items)
    candidates = []
    sample = model.roi_heads.label_and_sample_proposals
    model.roi_heads.label_and_sample_proposals = lambda *given: candidates.append(given[0]) or sample(*given)
    model(with_stored(items, boxes, logits))
    joined = [each.proposal_boxes.tensor[each.stored_row >= 0] for each in candidates[0]]
    assert all(torch.equal(ours, of_image[:most]) for ours, of_image in zip(joined, boxes, strict=True))
    best = {(number, *box) for number, of_image in enumerate(boxes) for box in of_image[:most].tolist()}
    assert {*seen_boxes(seen[0])} <= best and len(seen[0].labels) > 0


def test_a_fraction_that_uses_no_box_is_refused(folder):
    with pytest.raises(SetupError, match=r"KD\.STORED\.FRACTION is 0\.05 and .*PER_IMAGE 16: no stored box.* 0\.062"):
        student(folder, "KD.STORED.FRACTION", 0.05, terms=("dkd",))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_stored_boxes_trains_the_plain_detector(folder, kind):
    cfg = student_config(NOBODY, "KD.TEACHER.STORED", folder, *distilling(KINDS[kind]), terms=("kd", "dkd", "nkd"))
    model, plain = build(cfg), build(plain_config(cfg))
    plain.load_state_dict(model.state_dict())
    items = batch()
    losses, gradients = loss_gradients(model, with_stored(items, [torch.zeros(0, 4)] * 2, [torch.zeros(0, 4)] * 2))
    expected, expected_gradients = loss_gradients(plain, items)
    assert [losses.pop(f"loss_{name}").item() for name in ("kd", "dkd", "nkd")] == [0.0, 0.0, 0.0]
    assert losses == expected
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-6 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_have_stored_rows(folder, seen, kind):
    items = batch(objects=0)
    losses = student(folder, *distilling(KINDS[kind]))(with_stored(items, *around_objects(batch())))
    assert len(seen[0].labels) > 0 and set(seen[0].labels.tolist()) == {3}
    assert all(torch.isfinite(value) for value in losses.values())


def test_without_stored_knowledge_nothing_is_drawn_differently():
    cfg = student_config(NOBODY, terms=())
    model, plain = build(cfg), build(plain_config(cfg))
    plain.load_state_dict(model.state_dict())
    (losses, gradients), state = loss_gradients(model, batch()), torch.get_rng_state()
    expected, expected_gradients = loss_gradients(plain, batch())
    assert losses == expected and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(gradients[name], value) for name, value in expected_gradients.items())


def test_without_terms_the_boxes_alone_join(folder, no_teacher):
    model = student(folder, terms=())
    pooler = Calls(model.roi_heads.box_pooler)
    items = batch()
    boxes, logits = around_objects(items)
    losses = model(with_stored(items, boxes, logits))
    assert {*sampled(pooler)} & table(boxes, logits).keys()
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


def test_only_the_classes_that_the_teacher_knows_are_compared(tmp_path, seen):
    """It knows classes 0 and 2 of 3: column 1 leaves both softmaxes, and proposals of class 1 leave."""
    model = student(empty_knowledge(tmp_path / "knowledge", (0, 2)), terms=("recorded", "dkd"))
    predictor, pooler = Calls(model.roi_heads.box_predictor), Calls(model.roi_heads.box_pooler)
    labels = []
    sample = model.roi_heads.label_and_sample_proposals
    model.roi_heads.label_and_sample_proposals = lambda *given: [
        labels.extend(p.gt_classes.tolist()) or p for p in sample(*given)
    ]
    items = batch()
    for item in items:
        item["instances"].gt_classes = torch.tensor([0, 1, 2])
    boxes, logits = around_objects(items)
    for rows in logits:
        rows[:, 1] = -1e4
    known = table(boxes, logits)
    losses = model(with_stored(items, boxes, logits))
    chosen = [row for row, box in enumerate(sampled(pooler)) if box in known and labels[row] != 1]
    assert 1 in [labels[row] for row, box in enumerate(sampled(pooler)) if box in known]
    assert seen_boxes(seen[0]) == [sampled(pooler)[row] for row in chosen]
    assert seen[0].kept.nonzero().squeeze(1).tolist() == chosen
    theirs = torch.stack([known[sampled(pooler)[row]] for row in chosen])[:, [0, 2, 3]]
    ours = predictor.outputs[0][0][chosen][:, [0, 2, 3]]
    there = torch.tensor([{0: 0, 2: 1, 3: 2}[labels[row]] for row in chosen])
    assert losses["loss_dkd"].item() == pytest.approx(dkd64(ours, theirs, there, 1.0, 0.25), rel=1e-4)


def test_live_maps_and_stored_logits_together(folder, teacher):
    items = batch()
    stored = with_stored(items, *around_objects(items))
    model = student(folder, teacher=teacher, terms=("dkd", "pkd"))
    logits_alone = student(folder, terms=("dkd",))
    maps_alone = build(student_config(teacher, terms=("pkd",)))
    for other in (logits_alone, maps_alone):
        other.load_state_dict(model.state_dict())
    maps_alone.terms.load_state_dict(model.terms.state_dict())
    assert isinstance(model.load_teacher(), FrozenTeacher)
    head = Calls(model.teacher.model.roi_heads.box_head)
    both, _ = loss_gradients(model, stored)
    assert both["loss_dkd"] == loss_gradients(logits_alone, stored)[0]["loss_dkd"] > 0
    assert both["loss_pkd"] == loss_gradients(maps_alone, items)[0]["loss_pkd"] > 0
    assert not head.inputs  # no term needs the live logits


def test_sdd_looks_at_every_sampled_box_with_the_live_teacher(folder, teacher, seen):
    model = student(folder, teacher=teacher, terms=("sdd", "recorded"))
    model.load_teacher()
    ours, theirs = Calls(model.roi_heads.box_pooler), Calls(model.teacher.model.roi_heads.box_pooler)
    items = batch()
    losses = model(with_stored(items, *around_objects(items)))
    for given, used in zip(theirs.inputs[0][1], ours.inputs[0][1], strict=True):
        assert torch.equal(given.tensor, used.tensor)
    assert losses["loss_sdd"] > 0 and len(seen[0].labels) < 32


def test_a_batch_of_another_loader_is_refused(folder):
    with pytest.raises(SetupError, match=r"KD\.TEACHER\.STORED is set, but the batch has no stored knowledge"):
        student(folder, terms=("dkd",))(batch())


@pytest.mark.parametrize("objects", [0, 3])
def test_pictures_show_the_stored_rows(folder, storage, objects):
    model = student(folder, "VIS_PERIOD", 1, terms=("dkd",))
    items = batch(objects=3)
    boxes, logits = around_objects(items) if objects else ([torch.zeros(0, 4)] * 2, [torch.zeros(0, 4)] * 2)
    model(with_stored(items, boxes, logits))
    assert "teacher and student" in {name for name, _, _ in storage._vis_data} and len(storage._vis_data) == 2


def test_evaluation_needs_no_folder(tmp_path):
    model = student(str(tmp_path / "nowhere"), terms=("dkd",)).eval()
    with torch.no_grad():
        assert len(model(batch(1))[0]["instances"]) > 0


class TestTeachersProposals:
    """``KD.TEACHER.PROPOSALS``."""

    @pytest.mark.parametrize("terms", [("dkd",), ("pkd",), ()])
    def test_its_boxes_join_the_students(self, teacher, terms):
        cfg = student_config(teacher, "KD.TEACHER.PROPOSALS", True, terms=terms)
        model = build(cfg)
        inner = model.load_teacher().model
        own, candidates = Calls(model.proposal_generator), []
        sample = model.roi_heads.label_and_sample_proposals
        model.roi_heads.label_and_sample_proposals = lambda *given: candidates.append(given[0]) or sample(*given)
        items = batch()
        losses = model(items)
        with torch.no_grad():
            images = inner.preprocess_image(items)
            expected, _ = inner.proposal_generator(images, inner.backbone(images.tensor), None)
        for both, ours, theirs in zip(candidates[0], own.outputs[0][0], expected, strict=True):
            assert len(theirs) > 1 and torch.equal(both.proposal_boxes.tensor[: len(ours)], ours.proposal_boxes.tensor)
            torch.testing.assert_close(both.proposal_boxes.tensor[len(ours) :], theirs.proposal_boxes.tensor)
        assert all(torch.isfinite(value) for value in losses.values()) and not inner.training

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_head_trains(self, tmp_path, kind):
        teacher = teacher_files(tmp_path, *KINDS[kind])
        cfg = student_config(teacher, "KD.TEACHER.PROPOSALS", True, *distilling(KINDS[kind]), "MODEL.MASK_ON", True)
        losses, _ = loss_gradients(build(cfg), batch())
        assert losses["loss_dkd"] > 0 and losses["loss_mask"] > 0

    def test_stored_boxes_join_too(self, folder, teacher, seen):
        model = student(folder, "KD.TEACHER.PROPOSALS", True, teacher=teacher)
        items = batch()
        boxes, logits = around_objects(items)
        model(with_stored(items, boxes, logits))
        assert {*seen_boxes(seen[0])} <= table(boxes, logits).keys() and model.teacher is not None

    def test_a_teacher_without_rpn_is_refused(self, tmp_path):
        files = teacher_files(tmp_path, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
        with pytest.raises(SetupError, match=r"KD\.TEACHER\.PROPOSALS is True, but .* has no RPN"):
            build(student_config(files, "KD.TEACHER.PROPOSALS", True)).load_teacher()
