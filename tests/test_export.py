"""How exports are compared, and what is refused."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import sys
import types

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.export import export_student, formats, student
from kd_det.export.comparison import Detections, detect, inputs, largest_difference
from kd_det.export.formats import OUTPUTS, describe
from tests.modeling.test_any_rcnn import CASCADE, distilling
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


def test_a_file_that_is_not_an_image(tmp_path):
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
    with pytest.raises(SetupError, match=r"--weights.*a different architecture.*backbone\.bottom_up\.res2\.2"):
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


KINDS = {
    "box": ["DATASETS.TRAIN", ["export_classes"]], "mask": ["MODEL.MASK_ON", True],
    "cascade": ["MODEL.META_ARCHITECTURE", "DistillRCNN", *distilling(CASCADE), "MODEL.MASK_ON", True],
}  # fmt: skip
NAMES = ["cat", "dog", "person"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_takes_other_sizes_and_images_without_objects(tmp_path, kind):
    images = [255 * torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) for size in ((96, 160), (128, 64))]
    images.append(torch.full((3, 96, 128), 255.0))
    MetadataCatalog.get("export_classes").thing_classes = NAMES
    cfg = load_config("", [*TINY, *SMALL, *KINDS[kind]])
    *noise, white = (float(detect(build(cfg).eval(), image).scores.max()) for image in images)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = (min(noise) + white) / 2

    weights = saved(cfg, tmp_path / "model.pth")
    (exported,) = export_student(cfg, weights, str(tmp_path / "out"), ["torchscript"])
    assert (exported.boxes, exported.scores) == (0, 0) and exported.detections > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.ts", "model.json"}
    told = json.loads((tmp_path / "out" / "model.json").read_text())
    names = told["outputs"]
    assert names == ["pred_boxes", "scores", "pred_classes", *["pred_masks"] * cfg.MODEL.MASK_ON]
    assert set(names) <= set(told["units"]) and told["classes"] == (NAMES if cfg.DATASETS.TRAIN else None)

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


def failure(tmp_path, cfg, *formats, **given):
    """The line that an export ends with, and the names of what is in its folder."""
    exports = export_student(cfg, saved(cfg, tmp_path / "model.pth"), str(tmp_path / "out"), formats, **given)
    with pytest.raises(SetupError) as failed:
        list(exports)
    line = str(failed.value)
    assert "\n" not in line and len(line) < 700
    return line, {path.name for path in (tmp_path / "out").glob("*")} | {path.name for path in tmp_path.glob("out")}


GRAPH = "a Python function cannot be exported:\n" + "graph(%self : __torch__.Model):\n" * 4000


def refuse(*args, **kwargs):
    raise RuntimeError(GRAPH)


def fake_onnx(monkeypatch, exported=None):
    """Replaces onnx and onnxruntime: ``exported`` is torch's exporter, the runtime refuses every image."""
    session = types.SimpleNamespace(run=refuse)
    runtime = types.SimpleNamespace(InferenceSession=lambda *args, **kwargs: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(student, "check_onnx_packages", lambda: None)
    monkeypatch.setattr(torch.onnx, "export", exported or (lambda *args, **kwargs: None))


def other_objects(expected, given):
    return math.inf, math.inf


@pytest.mark.parametrize(
    "name, broken, message",
    [
        ("torchscript", lambda patch: patch.setattr(torch.jit, "trace", refuse), "torch cannot trace this student"),
        ("torchscript", lambda patch: patch.setattr(torch.jit, "save", refuse), "torch cannot trace this student"),
        ("onnx", lambda patch: fake_onnx(patch, refuse), "torch cannot export this student (a Python function"),
        ("onnx", fake_onnx, "the trace works only for the image size"),
        ("torchscript", lambda patch: patch.setattr(student, "largest_difference", other_objects), "finds different"),
        ("checkpoint", lambda patch: patch.setattr(student, "largest_difference", other_objects), "finds different"),
    ],
)
def test_a_format_that_fails_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, name, broken, message, capfd):
    broken(monkeypatch)
    line, files = failure(tmp_path, load_config("", [*TINY, *SMALL]), name)
    assert f"--format {name}: " in line and message in line and files == set()
    assert "graph(" not in line + "".join(capfd.readouterr())


def test_a_full_disk_leaves_no_half_export(tmp_path, monkeypatch):
    cfg = load_config("", [*TINY, *SMALL])
    weights, out = saved(cfg, tmp_path / "model.pth"), tmp_path / "out"
    (out / ".export.1.tmp").mkdir(parents=True)  # what a killed export left
    (out / ".export.1.tmp" / "model.pth").touch()
    write = formats.write_atomically

    def full(path, content):
        if path.name == "config.yaml":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(formats, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        list(export_student(cfg, weights, str(out), ["checkpoint"]))
    assert list(out.iterdir()) == []


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    cfg = load_config("", [*TINY, *SMALL])
    weights = saved(cfg, tmp_path / "model.pth")
    with pytest.raises(SetupError, match=r"--output '.*model\.pth' cannot be created: .*exists"):
        next(export_student(cfg, weights, weights))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SetupError, match=r"--output '.*out' cannot be written to"):
        next(export_student(cfg, weights, str(tmp_path / "out")))


def test_the_description_has_the_units_of_every_output():
    found = Instances((9, 9), **dict.fromkeys(OUTPUTS, torch.zeros(1)))
    told = describe(load_config("", [*TINY, *SMALL]), found)
    assert told["outputs"] == list(OUTPUTS) and told["num_classes"] == 3
    assert all("pixels" in told["units"][name] for name in ("pred_boxes", "pred_keypoints", "shortest_edge"))
    assert all("0 to 1" in told["units"][name] for name in ("scores", "pred_masks", "pred_keypoints"))
