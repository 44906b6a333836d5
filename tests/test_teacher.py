"""The frozen teacher: its inputs, outputs and precision."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image

from kd_det.config import load_config
from kd_det.teacher.frozen import load_teacher
from tests.modeling.test_any_rcnn import KINDS, distilling
from tests.tiny import batch, build, loss_gradients, student_config, teacher_files

RGB = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [57.375, 57.12, 58.395]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def plain(files):
    """The teacher as Detectron2 builds and loads it, without kd_det."""
    model = build_model(load_config(files[0]))
    model.load_state_dict(torch.load(files[1], weights_only=True)["model"])
    return model.eval()


def read(path, image_format):
    from detectron2.data.detection_utils import read_image

    return torch.as_tensor(read_image(path, format=image_format).transpose(2, 0, 1).copy())


@pytest.mark.parametrize("student_format", ["RGB", "BGR"])
def test_receives_the_tensor_it_would_receive_alone(files, plain, tmp_path, student_format):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    overrides = RGB if student_format == "RGB" else []
    teacher = load_teacher(student_config(files, *overrides))
    seen = []
    for model in (teacher.model, plain):
        model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    ours = teacher.features(
        [{"image": read(tmp_path / "image.png", student_format)}], student_format, torch.device("cpu")
    )
    alone = plain.backbone(plain.preprocess_image([{"image": read(tmp_path / "image.png", "BGR")}]).tensor)
    assert seen[0].shape == (1, 3, 64, 96) and seen[0].abs().max() > 50
    assert torch.equal(seen[0], seen[1])
    for name, value in alone.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


def test_logits_are_those_of_the_plain_model(files, plain):
    teacher = load_teacher(student_config(files))
    inputs = batch()
    boxes = [item["instances"].gt_boxes for item in inputs]
    logits = teacher.box_logits(teacher.features(inputs, "BGR", torch.device("cpu")), boxes)
    with torch.no_grad():
        maps = plain.backbone(plain.preprocess_image(inputs).tensor)
        heads = plain.roi_heads
        expected = heads.box_predictor(
            heads.box_head(heads.box_pooler([maps[f] for f in heads.box_in_features], boxes))
        )[0]
    assert logits.shape == (6, 4) and not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, tolerance", [("bfloat16", 0.1), ("float16", 0.02)])
def test_reduced_precision_is_near_and_leaves_the_image_alone(files, name, tolerance):
    # Half the largest float16 is soon reached by the large maps of a random network.
    small = ["MODEL.PIXEL_STD", [5700.0, 5700.0, 5700.0]]
    inputs = batch()
    boxes = [item["instances"].gt_boxes for item in inputs]
    logits = {}
    for dtype in ("float32", name):
        teacher = load_teacher(student_config(files, "KD.TEACHER.DTYPE", dtype, "KD.TEACHER.OPTS", small))
        assert teacher.model.pixel_mean.dtype == torch.float32
        assert teacher.model.backbone.fpn_output2.weight.dtype == getattr(torch, dtype)
        logits[dtype] = teacher.box_logits(teacher.features(inputs, "BGR", torch.device("cpu")), boxes)
        assert logits[dtype].dtype == torch.float32
    spread = logits["float32"].std().item()
    difference = (logits[name] - logits["float32"]).abs().max().item()
    assert 0 < difference < tolerance * spread * 10


def test_loading_leaves_the_random_numbers_alone(files):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_teacher(student_config(files))
    assert torch.equal(torch.rand(3), expected)


def test_a_distilled_student_can_be_the_next_teacher(files, tmp_path):
    cfg = student_config(files)
    torch.manual_seed(0)
    student = build_model(cfg)
    torch.save({"model": student.state_dict()}, tmp_path / "student.pth")
    (tmp_path / "student.yaml").write_text(cfg.dump())
    teacher = load_teacher(student_config((str(tmp_path / "student.yaml"), str(tmp_path / "student.pth"))))
    assert type(teacher.model).__name__ == "GeneralizedRCNN"
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.model.state_dict().items())


def pickled(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_with_its_teacher_can_be_copied_and_pickled(tmp_path, kind, copied):
    files = teacher_files(tmp_path, *KINDS[kind])
    model = build(student_config(files, *distilling(KINDS[kind]), "KD.TEACHER.DTYPE", "bfloat16", terms=("dkd",)))
    model.load_teacher()
    other = copied(model)
    with torch.no_grad():  # the copy's teacher is its own
        for value in model.teacher.model.parameters():
            value.add_(1.0)
    model.teacher = None
    with EventStorage(0):
        assert loss_gradients(model, batch())[0] == loss_gradients(other, batch())[0]
    assert other.teacher.model.training is False
