"""What an export is compared by, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.export import export_student
from kd_det.export.detections import Detections, detect, largest_difference
from kd_det.export.images import inputs
from tests.tiny import TINY, build, student_config, teacher_files

SMALL = ["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160]


def found(boxes, scores, classes) -> Detections:
    return Detections(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(classes, dtype=torch.int64)
    )


TWO = found([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 30.0]], [0.9, 0.8], [1, 2])


@pytest.mark.parametrize(
    "given, expected",
    [
        (TWO, (0.0, 0.0)),
        (found([[0.0, 0.0, 10.0, 10.5], [5.0, 5.25, 20.0, 30.0]], [0.9, 0.5], [1, 2]), (0.5, 0.3)),
        (found([[5.0, 5.0, 20.0, 30.0], [0.0, 0.0, 10.0, 10.0]], [0.8, 0.9], [2, 1]), (0.0, 0.0)),  # another order
        (found([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 30.0]], [0.9, 0.8], [1, 3]), (math.inf, math.inf)),
        (found([[0.0, 0.0, 10.0, 10.0]], [0.9], [1]), (math.inf, math.inf)),
    ],
)
def test_the_largest_difference(given, expected):
    assert largest_difference(TWO, given) == pytest.approx(expected, abs=1e-6)


def test_no_detections_do_not_differ():
    assert largest_difference(found([], [], []), found([], [], [])) == (0.0, 0.0)


def test_every_image_comes_at_two_sizes_in_the_detectors_channel_order(tmp_path):
    Image.new("RGB", (200, 100), (255, 128, 0)).save(tmp_path / "orange.png")
    for channels, first in (("RGB", 255), ("BGR", 0)):
        cfg = load_config("", ["INPUT.FORMAT", channels, *SMALL])
        images = list(inputs(cfg, [str(tmp_path / "orange.png")]))
        assert [tuple(image.shape) for image in images] == [(3, 80, 160), (3, 48, 96)]
        assert all(image.dtype == torch.float32 and (image[0] == first).all() for image in images)
    assert len(list(inputs(cfg))) == 4  # scikit-learn's two photographs


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SetupError, match="--image"):
        list(inputs(load_config("", SMALL), [str(tmp_path / "text.png")]))


def saved(cfg, path):
    torch.save({"model": build(cfg).state_dict()}, path)
    return str(path)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    deep = [*TINY, *SMALL, "MODEL.RESNETS.DEPTH", 34, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    shallow = [*deep, "MODEL.RESNETS.DEPTH", 18]
    cfg, other = load_config("", deep), load_config("", shallow)
    with pytest.raises(SetupError, match=r"--weights.*another architecture.*backbone\.bottom_up\.res2\.2"):
        next(export_student(other, saved(cfg, tmp_path / "deep.pth"), str(tmp_path / "out")))
    with pytest.raises(SetupError, match=r"--weights.*backbone\.bottom_up\.res2\.2.*is not in the file"):
        next(export_student(cfg, saved(other, tmp_path / "shallow.pth"), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_another_number_of_classes_is_refused(tmp_path):
    weights = saved(load_config("", [*TINY, *SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", 4]), tmp_path / "model.pth")
    with pytest.raises(SetupError, match=r"--weights.*cls_score\.weight is \(4, 32\) in the model and \(5, 32\)"):
        next(export_student(load_config("", [*TINY, *SMALL]), weights, str(tmp_path / "out")))


def test_only_an_rcnn_can_be_exported(tmp_path):
    cfg = load_config("", [*TINY, *SMALL, "MODEL.META_ARCHITECTURE", "ProposalNetwork"])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    with pytest.raises(SetupError, match=r"MODEL\.META_ARCHITECTURE is 'ProposalNetwork'"):
        next(export_student(cfg, str(tmp_path / "model.pth"), str(tmp_path / "out")))


def test_onnx_without_its_packages(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(SetupError, match="pip install onnx"):
        next(export_student(load_config("", TINY), "nowhere.pth", "nowhere", ["checkpoint", "onnx"]))


def test_a_trace_of_nothing_is_refused_and_the_checkpoint_written(tmp_path):
    cfg = student_config(teacher_files(tmp_path), *SMALL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    exports = export_student(cfg, saved(cfg, tmp_path / "model.pth"), str(tmp_path / "out"))
    assert next(exports).detections == 0
    with pytest.raises(SetupError, match="--format torchscript: the student detects nothing"):
        next(exports)


def test_onnx_finds_the_same_or_says_what_is_missing(tmp_path):
    cfg = load_config("", [*TINY, *SMALL])
    exports = export_student(cfg, saved(cfg, tmp_path / "model.pth"), str(tmp_path / "out"), ["onnx"])
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        with pytest.raises(SetupError, match=r"--format onnx needs .*pip install onnx"):
            next(exports)
        return
    exported = next(exports)
    assert exported.detections > 0 and exported.boxes < 0.01 and exported.scores < 1e-4


@pytest.mark.parametrize("masks", [False, True])
def test_a_trace_takes_other_sizes_and_images_without_objects(tmp_path, masks):
    images = [255 * torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) for size in ((96, 160), (128, 64))]
    images.append(torch.full((3, 96, 128), 255.0))
    cfg = load_config("", [*TINY, *SMALL, "MODEL.MASK_ON", masks])
    *noise, white = (float(detect(build(cfg).eval(), image).scores.max()) for image in images)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = (min(noise) + white) / 2

    weights = saved(cfg, tmp_path / "model.pth")
    (exported,) = export_student(cfg, weights, str(tmp_path / "out"), ["torchscript"])
    assert (exported.boxes, exported.scores) == (0, 0) and exported.detections > 0
    names = json.loads((tmp_path / "out" / "model.json").read_text())["outputs"]
    assert names == ["pred_boxes", "scores", "pred_classes", *["pred_masks"] * masks]

    traced, model, counts = torch.jit.load(str(tmp_path / "out" / "model.ts")), build(cfg).eval(), []
    for image in images:
        with torch.no_grad():
            (expected,) = model.inference([{"image": image}], do_postprocess=False)
        outputs = dict(zip(names, traced(image), strict=True))
        torch.testing.assert_close(outputs.pop("pred_boxes"), expected.pred_boxes.tensor, rtol=0, atol=1e-4)
        for name, value in outputs.items():
            torch.testing.assert_close(value, expected.get(name), rtol=0, atol=1e-4)
        counts.append(len(expected))
    assert counts[0] > 0 and counts[1] > 0 and counts[2] == 0
