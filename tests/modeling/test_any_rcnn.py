"""Cascade, C4, mask and keypoint heads: what distillation leaves unchanged, and teachers of another kind."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Keypoints

from kd_det.common.errors import SetupError
from kd_det.config import plain_config
from kd_det.losses import dkd_loss
from tests.modeling.test_distill_rcnn import Calls
from tests.tiny import batch, build, loss_gradients, student_config, teacher_files

CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
C4 = [
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"],
    "MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[8, 16, 32]],
    "MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["res4"],
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4,
]  # fmt: skip
KEYPOINTS = [
    "MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 4,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8], "MODEL.ROI_HEADS.NUM_CLASSES", 3,
]  # fmt: skip
KINDS = {"standard": [], "cascade": CASCADE, "c4": C4}


def distilling(overrides: list) -> list:
    """The same settings with the heads' distilling counterparts."""
    return [f"Distill{value}" if value in ("CascadeROIHeads", "Res5ROIHeads") else value for value in overrides]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    return {kind: teacher_files(tmp_path_factory.mktemp(kind), *overrides) for kind, overrides in KINDS.items()}


def keypoint_batch():
    items = batch()
    for item in items:
        boxes = item["instances"].gt_boxes.tensor
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        points = centre[:, None].repeat(1, 4, 1) + torch.tensor([[-2.0, -2], [2, -2], [-2, 2], [2, 2]])
        item["instances"].gt_keypoints = Keypoints(torch.cat([points, torch.full_like(points[..., :1], 2)], dim=-1))
    return items


@pytest.mark.parametrize("extra", [[], ["MODEL.MASK_ON", True], KEYPOINTS], ids=["box", "mask", "keypoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_weight_0_gives_the_plain_models_losses_and_gradients(teachers, kind, extra):
    if kind == "c4" and extra is KEYPOINTS:
        extra = []  # Detectron2's C4 heads know no keypoints
    settings = [*distilling(KINDS[kind]), *extra, "KD.DKD.WEIGHT", 0.0]
    cfg = student_config(teachers[kind], *settings)
    distilled, plain = build(cfg), build(plain_config(cfg))
    assert type(plain.roi_heads) in type(distilled.roi_heads).__bases__
    plain.load_state_dict(distilled.state_dict())
    inputs = keypoint_batch() if extra is KEYPOINTS else batch()
    losses, gradients = loss_gradients(distilled, inputs)
    expected_losses, expected_gradients = loss_gradients(plain, inputs)
    assert losses.pop("loss_dkd") == 0
    assert losses == expected_losses
    assert ("loss_mask" in losses) == ("MODEL.MASK_ON" in extra) and ("loss_keypoint" in losses) == (extra is KEYPOINTS)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) > 20
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-6 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("theirs", KINDS)
@pytest.mark.parametrize("ours", KINDS)
def test_student_and_teacher_of_different_kinds_train(teachers, ours, theirs):
    model = build(student_config(teachers[theirs], *distilling(KINDS[ours])))
    losses, gradients = loss_gradients(model, batch())
    assert losses["loss_dkd"] > 0 and all(torch.isfinite(value) for value in losses.values())
    heads = [name for name in gradients if "box_predictor" in name and "cls_score.weight" in name]
    assert len(heads) == (3 if ours == "cascade" else 1)
    silent = build(student_config(teachers[theirs], *distilling(KINDS[ours]), "KD.DKD.WEIGHT", 0.0))
    _, without = loss_gradients(silent, batch())
    assert all(not torch.equal(gradients[name], without[name]) for name in heads)
    assert all(p.grad is None for p in model.teacher.model.parameters())


def test_every_cascade_stage_is_compared_on_its_own_proposals(teachers):
    model = build(student_config(teachers["cascade"], *distilling(CASCADE)))
    model.load_teacher()
    ours, theirs = Calls(model.roi_heads.box_pooler), Calls(model.teacher.model.roi_heads.box_pooler)
    students = [Calls(predictor) for predictor in model.roi_heads.box_predictor]
    frozen = [Calls(predictor) for predictor in model.teacher.model.roi_heads.box_predictor]
    labels = []
    losses_of = [predictor.losses for predictor in model.roi_heads.box_predictor]
    for predictor, original in zip(model.roi_heads.box_predictor, losses_of, strict=True):
        predictor.losses = lambda predictions, proposals, original=original: (
            labels.append(torch.cat([p.gt_classes for p in proposals])) or original(predictions, proposals)
        )
    losses = model(batch())
    assert [len(calls.inputs) for calls in (*students, *frozen)] == [1] * 6
    for given, used in zip(theirs.inputs, ours.inputs, strict=True):
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(given[1], used[1], strict=True))
    assert not torch.equal(ours.inputs[0][1][0].tensor, ours.inputs[1][1][0].tensor)
    expected = sum(
        dkd_loss(s.outputs[0][0], t.outputs[0][0], y, alpha=1.0, beta=0.25, temperature=1.0)
        for s, t, y in zip(students, frozen, labels, strict=True)
    )
    torch.testing.assert_close(losses["loss_dkd"], expected)


def test_a_plain_student_asks_a_cascade_teachers_first_stage(teachers):
    model = build(student_config(teachers["cascade"]))
    model.load_teacher()
    frozen = [Calls(predictor) for predictor in model.teacher.model.roi_heads.box_predictor]
    model(batch())
    assert [len(calls.inputs) for calls in frozen] == [1, 0, 0]


def test_c4_student_runs_its_res5_once(teachers):
    model = build(student_config(teachers["c4"], *distilling(C4), "MODEL.MASK_ON", True))
    model.load_teacher()
    ours, theirs = Calls(model.roi_heads.res5), Calls(model.teacher.model.roi_heads.res5)
    model(batch())
    assert len(ours.inputs) == len(theirs.inputs) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_inference_and_weights_are_the_plain_models(teachers, kind):
    cfg = student_config(teachers[kind], *distilling(KINDS[kind]))
    model, plain = build(cfg).eval(), build(plain_config(cfg)).eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        (got,), (expected,) = model(batch(1)), plain(batch(1))
    assert len(got["instances"]) > 0
    assert torch.equal(got["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor)
    assert torch.equal(got["instances"].scores, expected["instances"].scores)


def test_teachers_with_other_levels_and_head_sizes(tmp_path):
    narrow = ["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 5, "MODEL.ROI_BOX_HEAD.FC_DIM", 20]
    levels = ["MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4"], "MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5", "p6"]]
    teacher = teacher_files(tmp_path, *narrow, *levels, "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128]])
    losses, _ = loss_gradients(build(student_config(teacher)), batch())
    assert losses["loss_dkd"] > 0


def test_class_agnostic_box_regression(tmp_path):
    teacher = teacher_files(tmp_path, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    for agnostic in (False, True):
        cfg = student_config(teacher, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic)
        losses, _ = loss_gradients(build(cfg), batch())
        assert losses["loss_dkd"] > 0


@pytest.mark.parametrize("key", ["USE_SIGMOID_CE", "USE_FED_LOSS"])
def test_heads_without_a_softmax_are_refused_by_name(teachers, key):
    cfg = student_config(teachers["standard"])
    cfg.MODEL.ROI_BOX_HEAD[key] = True  # upstream main's keys; 0.6 does not have them
    with pytest.raises(SetupError, match=rf"MODEL\.ROI_BOX_HEAD\.{key} is True.*Set it to False"):
        build(cfg)


def test_heads_that_cannot_hand_over_their_logits_are_refused_by_name(teachers):
    with pytest.raises(SetupError, match=r"MODEL\.ROI_HEADS\.NAME is 'CascadeROIHeads'.*DistillCascadeROIHeads"):
        build(student_config(teachers["standard"], *CASCADE))


def test_retinanet_teacher_is_refused_by_name(teachers):
    settings = ["KD.TEACHER.CONFIG_FILE", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"]
    settings += ["KD.TEACHER.OPTS", ["MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.ROI_HEADS.NUM_CLASSES", 3]]
    model = build(student_config(teachers["standard"], *settings))
    with pytest.raises(SetupError, match=r"is a RetinaNet; a teacher must be a GeneralizedRCNN"):
        model.load_teacher()
