"""The distilling detector: shared proposals, one pass of each head, the plain detector's losses plus the terms."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from kd_det.common.errors import NonFiniteLossError
from kd_det.config import plain_config
from kd_det.losses import dkd_loss, kd_loss
from kd_det.modeling.terms import TERMS, KDTerm, register_term
from tests.tiny import batch, build, loss_gradients, student_config, teacher_files


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


class Calls:
    """Counts a module's calls and keeps their inputs."""

    def __init__(self, module: nn.Module) -> None:
        self.inputs = []
        self.outputs = []
        module.register_forward_hook(self._note)

    def _note(self, module, args, output):
        self.inputs.append(args)
        self.outputs.append(output)


@pytest.mark.parametrize("train_on_pred_boxes", [False, True])
def test_teacher_sees_exactly_the_sampled_boxes(teacher, train_on_pred_boxes):
    cfg = student_config(teacher, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", train_on_pred_boxes, "MODEL.MASK_ON", True)
    model = build(cfg)
    model.load_teacher()
    ours, theirs = Calls(model.roi_heads.box_pooler), Calls(model.teacher.model.roi_heads.box_pooler)
    model(batch())
    (seen,), (sampled,) = theirs.inputs, ours.inputs
    assert [len(boxes) for boxes in seen[1]] == [16, 16]
    for given, used in zip(seen[1], sampled[1], strict=True):
        assert torch.equal(given.tensor, used.tensor)


def test_losses_are_those_of_the_two_heads_logits(teacher):
    model = build(student_config(teacher, "KD.KD.TEMPERATURE", 2.0, "KD.DKD.BETA", 0.5, terms=("kd", "dkd")))
    model.load_teacher()
    ours, theirs = Calls(model.roi_heads.box_predictor), Calls(model.teacher.model.roi_heads.box_predictor)
    labels = []
    sample = model.roi_heads.label_and_sample_proposals
    model.roi_heads.label_and_sample_proposals = lambda *args: [labels.append(p.gt_classes) or p for p in sample(*args)]
    losses = model(batch())
    s, t, y = ours.outputs[0][0], theirs.outputs[0][0], torch.cat(labels)
    assert s.shape == t.shape == (32, 4) and set(y.tolist()) > {3}
    torch.testing.assert_close(losses["loss_kd"], kd_loss(s, t, temperature=2.0))
    torch.testing.assert_close(losses["loss_dkd"], dkd_loss(s, t, y, alpha=1.0, beta=0.5, temperature=1.0))
    assert losses["loss_dkd"] > 0


def test_each_head_runs_once_and_the_teachers_rpn_never(teacher):
    model = build(student_config(teacher, terms=("kd", "dkd")))
    model.load_teacher()
    inner = model.teacher.model
    student = [Calls(part) for part in (model.backbone, model.proposal_generator, model.roi_heads.box_head)]
    frozen = [Calls(part) for part in (inner.backbone, inner.roi_heads.box_head)]
    rpn = Calls(inner.proposal_generator.rpn_head)
    model(batch())
    assert [len(calls.inputs) for calls in student + frozen] == [1] * 5
    assert not rpn.inputs


def test_the_teachers_box_head_rests_when_no_term_needs_logits(teacher):
    @register_term("map_energy")
    class MapEnergy(KDTerm):
        def __init__(self, cfg, maps):
            super().__init__()

        def forward(self, inputs):
            assert not inputs.regions
            differences = [
                (inputs.student_features[k].mean(1) - inputs.teacher_features[k].mean(1)).square().mean()
                for k in inputs.student_features
            ]
            return {"loss_map_energy": sum(differences)}

    try:
        model = build(student_config(teacher, terms=("map_energy",)))
        model.load_teacher()
        head = Calls(model.teacher.model.roi_heads.box_head)
        losses, gradients = loss_gradients(model, batch())
        assert losses["loss_map_energy"] > 0 and not head.inputs
        assert gradients["backbone.fpn_output2.weight"].abs().sum() > 0
    finally:
        del TERMS["map_energy"]


@pytest.mark.parametrize("mask_on", [False, True])
@pytest.mark.parametrize("settings", [("kd", "dkd"), ()])
def test_weight_0_and_no_terms_train_the_plain_detector(teacher, settings, mask_on):
    cfg = student_config(teacher, "KD.KD.WEIGHT", 0.0, "KD.DKD.WEIGHT", 0.0, "MODEL.MASK_ON", mask_on, terms=settings)
    distilled, plain = build(cfg), build(plain_config(cfg))
    assert type(plain).__name__ == "GeneralizedRCNN"
    plain.load_state_dict(distilled.state_dict())
    losses, gradients = loss_gradients(distilled, batch())
    expected_losses, expected_gradients = loss_gradients(plain, batch())
    assert {name: losses.pop(name).item() for name in [f"loss_{term}" for term in settings]} == dict.fromkeys(
        [f"loss_{term}" for term in settings], 0.0
    )
    assert losses == expected_losses
    assert gradients.keys() == expected_gradients.keys() and len(gradients) > 20
    for name, value in expected_gradients.items():
        assert torch.equal(gradients[name], value), name


def test_kd_changes_gradients(teacher):
    weighted = [loss_gradients(build(student_config(teacher, "KD.DKD.WEIGHT", w)), batch())[1] for w in (0.0, 1.0)]
    changed = [name for name in weighted[0] if not torch.equal(weighted[0][name], weighted[1][name])]
    assert "roi_heads.box_predictor.cls_score.weight" in changed and "backbone.bottom_up.res3.0.conv1.weight" in changed
    assert "roi_heads.box_predictor.bbox_pred.weight" not in changed


def test_the_teacher_never_changes(teacher):
    model = build(student_config(teacher, "KD.TEACHER.OPTS", ["MODEL.RESNETS.NORM", "BN"]))
    model.load_teacher()
    before = {name: value.clone() for name, value in model.teacher.model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    model.train()
    for step in range(10):
        optimizer.zero_grad()
        sum(model(batch(seed=step)).values()).backward()
        optimizer.step()
    assert not any(module.training for module in model.teacher.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.model.parameters())
    after = model.teacher.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p is q for p in model.parameters() for q in model.teacher.model.parameters())


def test_images_without_objects_and_a_batch_without_any(teacher):
    model = build(student_config(teacher))
    for objects in ((0, 3), (0, 0)):
        inputs = [batch(1, objects=count)[0] for count in objects]
        losses, gradients = loss_gradients(model, inputs)
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(torch.isfinite(value).all() for value in gradients.values())
        assert losses["loss_dkd"] > 0


def test_building_and_evaluating_need_no_teacher(teacher, tmp_path):
    cfg = student_config((str(tmp_path / "gone.yaml"), str(tmp_path / "gone.pth")))
    model = build(cfg).eval()
    plain = build_model(plain_config(cfg)).eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    inputs = [{k: item[k] for k in ("image", "height", "width")} for item in batch()]
    with torch.no_grad():
        for got, expected in zip(model(inputs), plain(inputs), strict=True):
            assert len(got["instances"]) > 0
            assert torch.equal(got["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor)
            assert torch.equal(got["instances"].scores, expected["instances"].scores)


def test_what_terms_learn_is_trained_but_not_part_of_the_student(teacher):
    @register_term("learns")
    class Learns(KDTerm):
        def __init__(self, cfg, maps):
            super().__init__()
            self.adapter = nn.Conv2d(16, 24, 1)

        def forward(self, inputs):
            difference = self.adapter(inputs.student_features["p3"]) - inputs.teacher_features["p3"]
            return {"loss_learns": difference.square().mean()}

    try:
        model = build(student_config(teacher, terms=("learns",)))
        _, gradients = loss_gradients(model, batch())
        assert gradients["terms.learns.adapter.weight"].abs().sum() > 0
        state = model.state_dict()
        assert not any("terms" in name or "teacher" in name for name in state)
        kept = model.terms.learns.adapter.weight.clone()
        assert not any(model.load_state_dict(state))
        assert torch.equal(model.terms.learns.adapter.weight, kept)
        wrapped = nn.Sequential(model)
        assert wrapped.state_dict().keys() == {f"0.{name}" for name in state}
    finally:
        del TERMS["learns"]


def test_a_non_finite_loss_names_term_and_images(teacher):
    model = build(student_config(teacher))
    model.load_teacher()
    nn.init.constant_(model.teacher.model.roi_heads.box_predictor.cls_score.bias, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"loss_dkd.*image_0\.png, image_1\.png"):
        model(batch())
