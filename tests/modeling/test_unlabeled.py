"""Unlabelled images in a training step: their losses and weights, and the live teacher's detections as ground truth."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances

from kd_det.common.errors import SetupError
from kd_det.config import plain_config
from kd_det.teacher.classes import ClassMap
from tests.knowledge import around_objects, empty_knowledge, with_stored
from tests.modeling.test_any_rcnn import CASCADE, KEYPOINTS, KINDS, distilling, keypoint_batch
from tests.modeling.test_two_processes import TAKE_ALL
from tests.tiny import batch, build, loss_gradients, student_config, teacher_files

MORE = ["DATASETS.UNLABELED", ("more",)]
NOBODY = ("", "")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    return {kind: teacher_files(tmp_path_factory.mktemp(kind), *settings) for kind, settings in KINDS.items()}


@pytest.fixture
def folder(tmp_path):
    return empty_knowledge(tmp_path / "knowledge")


def boxes_alone(items: list) -> list:
    """The items as those of unlabelled images: their objects have neither masks nor keypoints."""
    unlabeled = []
    for item in items:
        truth = item["instances"]
        pseudo = Instances(truth.image_size, gt_boxes=truth.gt_boxes, gt_classes=truth.gt_classes)
        unlabeled.append({**item, "instances": pseudo, "unlabeled": True})
    return unlabeled


def as_labeled(items: list) -> list:
    return [{**item, "unlabeled": False} for item in items]


def stored_student(folder, *overrides, terms=("dkd",), unlabeled=True, teacher=NOBODY):
    more = MORE if unlabeled else []
    return build(student_config(teacher, "KD.TEACHER.STORED", folder, *more, *overrides, terms=terms))


@pytest.mark.parametrize("unlabeled", [1, 2])
def test_the_losses_add_up_to_the_mean_over_the_images(folder, unlabeled):
    """Every anchor and proposal is taken, so the plain detector's losses are means over the images of the batch."""
    given = [*TAKE_ALL, "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 0, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 5]
    items = batch(3)
    logits = [(2 * torch.randn(20, 4)).log_softmax(1) for _ in items]
    stored = with_stored(items, [of_image[:20] for of_image in around_objects(items, 20)[0]], logits)
    model = stored_student(folder, *given, terms=("dkd", "kd"))
    joint = stored_student(folder, *given, terms=("dkd", "kd"), unlabeled=False)
    joint.load_state_dict(model.state_dict())
    losses, gradients = loss_gradients(model, [*stored[unlabeled:], *boxes_alone(stored[:unlabeled])])
    expected, expected_gradients = loss_gradients(joint, [*stored[unlabeled:], *stored[:unlabeled]])
    assert losses.keys() == {name + suffix for name in expected for suffix in ("", "_unlabeled")} and len(expected) == 6
    for name, value in expected.items():
        torch.testing.assert_close(losses[name] + losses[f"{name}_unlabeled"], value, rtol=1e-5, atol=0, msg=name)
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-4 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("extra", [[], ["MODEL.MASK_ON", True], KEYPOINTS], ids=["box", "mask", "keypoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_part_has_the_losses_of_its_images_alone(folder, kind, extra):
    """2 labelled and 1 unlabelled image: each part is what it is without the other, with weights 2/3 and 1/3."""
    if kind == "c4" and extra is KEYPOINTS:
        extra = []  # Detectron2's C4 heads know no keypoints
    heads = [*distilling(KINDS[kind]), *extra]
    boxes = distilling(KINDS[kind])
    items = keypoint_batch() if extra is KEYPOINTS else batch()
    (third,) = batch(1, seed=8)
    stored = with_stored([*items, third], *around_objects([*items, third]))
    model = stored_student(folder, *heads)
    losses, gradients = loss_gradients(model, [stored[0], *boxes_alone(stored[2:]), stored[1]])

    alone = stored_student(folder, *heads, unlabeled=False)
    without = stored_student(folder, *boxes, unlabeled=False)
    for other in (alone, without):
        other.load_state_dict(model.state_dict(), strict=False)
    torch.manual_seed(5)
    labeled = alone(stored[:2])
    others = without(boxes_alone(stored[2:]))  # with the numbers that follow
    expected = {name: value * 2 / 3 for name, value in labeled.items()}
    expected |= {f"{name}_unlabeled": value / 3 for name, value in others.items()}
    assert losses.keys() == expected.keys()
    assert ("loss_mask" in losses) == ("MODEL.MASK_ON" in extra) and ("loss_keypoint" in losses) == (extra is KEYPOINTS)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value.detach(), rtol=1e-5, atol=1e-7, msg=name)
    assert gradients["backbone.res4.0.conv1.weight" if kind == "c4" else "backbone.fpn_output2.weight"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_box_regression_can_be_switched_off(folder, kind):
    """The layers that regress boxes then get the labelled images' gradient alone, with its weight of 1/2."""
    heads = distilling(KINDS[kind])
    labeled, unlabeled = (with_stored(part, *around_objects(part)) for part in (batch(1), batch(1, seed=8)))
    model = stored_student(folder, *heads, "KD.UNLABELED.BOX_REGRESSION", False)
    losses, gradients = loss_gradients(model, [*labeled, *boxes_alone(unlabeled)])
    regression = {name for name in losses if "box_reg" in name or "rpn_loc" in name}
    assert regression and not any(name.endswith("_unlabeled") for name in regression)
    assert {"loss_rpn_cls_unlabeled", "loss_dkd_unlabeled"} <= losses.keys()
    alone = stored_student(folder, *heads, unlabeled=False)
    alone.load_state_dict(model.state_dict())
    _, expected = loss_gradients(alone, labeled)
    layers = [name for name in gradients if "bbox_pred" in name or "anchor_deltas" in name]
    assert len(layers) == 4 + 4 * (kind == "cascade")
    for name in layers:
        value = expected[name] / 2
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-5 * value.abs().max().item(), msg=name)
    model = stored_student(folder, *heads)
    _, both = loss_gradients(model, [*labeled, *boxes_alone(unlabeled)])
    changed = [name for name in layers if (both[name] - gradients[name]).abs().max() > 1e-3 * both[name].abs().max()]
    assert len(changed) >= 4  # a Cascade's last stage may have no object to regress


class TestLiveTeacher:
    """Its own inference on its features of the augmented image."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_its_detections_are_those_of_plain_inference(self, teachers, kind):
        model = build(student_config(teachers[kind], *distilling(KINDS[kind]), *MORE))
        teacher, items = model.load_teacher(), batch()
        features = teacher.features(items, model.input_format, model.device)
        images = model.preprocess_image(items)
        found = teacher.detections(features, teacher.proposals(features, images))
        with torch.no_grad():
            expected = teacher.model.inference(items, do_postprocess=False)
        for ours, theirs in zip(found, expected, strict=True):
            assert len(ours) == len(theirs) > 3 and torch.equal(ours.pred_classes, theirs.pred_classes)
            torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-6)

    def test_classes_without_a_partner_are_left_out(self, teachers):
        model = build(student_config(teachers["standard"], *MORE))
        teacher, items = model.load_teacher(), batch()
        features = teacher.features(items, model.input_format, model.device)
        proposals = teacher.proposals(features, model.preprocess_image(items))
        all_classes = teacher.detections(features, proposals)
        teacher.class_map = ClassMap((0, 2), (2, 1), 3, 3)
        for ours, every in zip(teacher.detections(features, proposals), all_classes, strict=True):
            kept = every.pred_classes != 0
            assert 0 < len(ours) < len(every)
            assert torch.equal(ours.pred_boxes.tensor, every.pred_boxes.tensor[kept])
            assert ours.pred_classes.tolist() == [{2: 0, 1: 2}[number] for number in every.pred_classes[kept].tolist()]

    @pytest.mark.parametrize("terms", [("dkd", "pkd"), ()])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_detections_above_the_threshold_are_the_ground_truth(self, teachers, terms, dtype):
        settings = [*MORE, "KD.UNLABELED.THRESHOLD", 0.3, "KD.UNLABELED.CLASS_THRESHOLDS", ["0=0.9"]]
        settings += ["KD.TEACHER.DTYPE", dtype, "MODEL.MASK_ON", True]
        model = build(student_config(teachers["standard"], *settings, terms=terms))
        teacher, (first, second) = model.load_teacher(), batch()
        unlabeled = {key: value for key, value in second.items() if key != "instances"} | {"unlabeled": True}
        boxes = torch.tensor(
            [[8.0, 8, 30, 30], [40, 8, 60, 30], [8, 40, 30, 60], [50, 30, 90, 60], [96, 9, 96, 40]]
        )  # the last has no area
        seen = []

        def detections(features, proposals):
            assert len(proposals) == 1 and features["p2"].shape[0] == 1
            scores, classes = torch.tensor([0.95, 0.85, 0.35, 0.25, 0.9]), torch.tensor([0, 0, 1, 2, 1])
            return [Instances((64, 96), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)]

        teacher.detections = detections
        generator = model.proposal_generator
        model.proposal_generator.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
        losses, _ = loss_gradients(model, [first, unlabeled])
        assert [len(truth) for truth in seen] == [1, 1] and generator.training
        (truth,) = seen[1]
        assert torch.equal(truth.gt_boxes.tensor, boxes[[0, 2]]) and truth.gt_classes.tolist() == [0, 1]
        names = ["cls", "box_reg", "rpn_cls", "rpn_loc", *terms]
        assert losses.keys() == {f"loss_{n}" for n in [*names, "mask"]} | {f"loss_{n}_unlabeled" for n in names}
        assert all(torch.isfinite(value) for value in losses.values())

    @pytest.mark.parametrize("kind", KINDS)
    def test_images_without_detections_are_background(self, teachers, kind):
        settings = [*distilling(KINDS[kind]), *MORE, "KD.UNLABELED.THRESHOLD", 0.9999, "KD.TEACHER.PROPOSALS", True]
        model = build(student_config(teachers[kind], *settings))
        (first, second) = batch()
        second.pop("instances")
        losses, _ = loss_gradients(model, [first, {**second, "unlabeled": True}])
        assert losses["loss_rpn_loc_unlabeled"] == 0 and losses["loss_rpn_cls_unlabeled"] > 0
        assert losses["loss_dkd_unlabeled"] > 0

    def test_a_teacher_without_rpn_is_refused(self, tmp_path):
        files = teacher_files(tmp_path, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
        with pytest.raises(SetupError, match=r"DATASETS\.UNLABELED is \('more',\), to be labelled.* has no RPN"):
            build(student_config(files, *MORE)).load_teacher()


def test_what_is_logged_of_them_is_logged_apart(folder, storage):
    labeled, unlabeled = (with_stored(part, *around_objects(part)) for part in (batch(1), batch(1, seed=8, objects=1)))
    cascade = distilling(CASCADE)
    model = stored_student(folder, "VIS_PERIOD", 1, *cascade)
    loss_gradients(model, [*labeled, *boxes_alone(unlabeled)])
    logged, pictures = dict(storage.latest()), [name for name, _, _ in storage._vis_data]
    ours = {name for name in logged if not name.startswith("unlabeled/")}
    assert {f"unlabeled/{name}" for name in [*ours, "boxes_per_image"]} == logged.keys() - ours
    assert logged["unlabeled/boxes_per_image"][0] == 1
    assert {"roi_head/num_fg_samples", "stage2/fast_rcnn/cls_accuracy", "rpn/num_pos_anchors"} <= ours
    assert len(pictures) == 4 and {f"unlabeled/{name}" for name in pictures[:2]} == {*pictures[2:]}
    storage.clear_images()
    alone = stored_student(folder, *cascade, unlabeled=False)
    alone.load_state_dict(model.state_dict())
    loss_gradients(alone, labeled)
    assert all(logged[name] == value for name, value in storage.latest().items() if name in ours)


def test_a_batch_of_another_loader_is_refused(folder):
    items = with_stored(batch(), *around_objects(batch()))
    for wrong in (items, boxes_alone(items)):
        with pytest.raises(SetupError, match=r"DATASETS\.UNLABELED is set, but the batch has \d labelled and \d unlab"):
            stored_student(folder)(wrong)


def test_evaluation_needs_nothing_of_it(folder):
    cfg = student_config(("nowhere.yaml", "nowhere.pth"), *MORE, terms=())
    assert "UNLABELED" not in plain_config(cfg).DATASETS
    plain = build(plain_config(cfg)).eval()
    with torch.no_grad():
        assert len(plain(batch(1))[0]["instances"]) > 0
