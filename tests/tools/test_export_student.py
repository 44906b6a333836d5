"""kd-det export, and what it wrote used where kd_det cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image

from kd_det.checkpoint import KDCheckpointer
from kd_det.config import load_config
from kd_det.engine.commands import export
from kd_det.export.comparison import detect, inputs
from tests.conftest import ROOT, command_environment
from tests.losses.test_imports import BLOCKED
from tests.tiny import TINY, build, student_config, teacher_files

TIMM = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0]
SIZES = ["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160, "INPUT.FORMAT", "RGB"]

WITH_DEFAULT_PREDICTOR = """
import json
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor

cfg = get_cfg()
cfg.merge_from_file("export/config.yaml")
found = [DefaultPredictor(cfg)(read_image(name, "BGR"))["instances"] for name in ("a.png", "b.png")]
print(json.dumps([[f.pred_boxes.tensor.tolist(), f.scores.tolist(), f.pred_classes.tolist()] for f in found]))
"""
WITH_TORCH_ALONE = """
import json
import numpy as np
import torch
import torchvision

model = torch.jit.load("export/model.ts")
found = [model(torch.from_numpy(np.load(name))) for name in ("0.npy", "1.npy")]
print(json.dumps([[value.tolist() for value in outputs[:3]] for outputs in found]))
"""


@pytest.fixture(scope="module", params=["resnet", "mobilenetv2"])
def exported(request, tmp_path_factory, coco, torch_home):
    """A distilled student, exported by the command: its model, its configuration, the folder, the command's output."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = student_config(teacher_files(folder), *SIZES, *(TIMM if request.param == "mobilenetv2" else []))
    model = build(cfg)
    KDCheckpointer(model, str(folder), kd_terms=model.terms).save("model_final", iteration=7)
    (folder / "student.yaml").write_text(cfg.dump())
    (folder / "teacher.pth").unlink()  # an export never needs it
    arguments = ["--config-file", "student.yaml", "--weights", "model_final.pth", "--output", "export"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "export_student.py"), *arguments], cwd=folder, text=True,
        env=command_environment(coco, torch_home, folder), capture_output=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return model.eval(), cfg, folder, result.stdout


def elsewhere(code: str, folder, *missing: str):
    """What ``code`` prints where the modules ``missing`` cannot be imported, in the folder, without a PYTHONPATH."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = [sys.executable, "-c", BLOCKED.format(blocked=set(missing)) + code]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def assert_same(found, boxes, scores, classes):
    assert len(scores) > 0 and found[2] == classes.tolist()
    torch.testing.assert_close(torch.tensor(found[0]), boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.tensor(found[1]), scores, rtol=0, atol=1e-4)


def test_the_command_compares_each_format(exported):
    *_, folder, output = exported
    lines = output.splitlines()
    assert lines[0] == "checkpoint: export/model.pth, export/config.yaml"
    assert lines[2] == "torchscript: export/model.ts, export/model.json"
    for line in (lines[1], lines[3]):
        assert line.startswith("    largest difference over ") and line.endswith("boxes 0 pixels, scores 0")
    timm = "mobilenetv2" in folder.name
    assert ("The backbone is timm's" in output) == timm == ("TIMM" in (folder / "export" / "config.yaml").read_text())


def test_a_trace_needs_torch_and_torchvision_alone(exported):
    model, cfg, folder, _ = exported
    images = list(inputs(cfg))[:2]  # one photograph at two sizes
    assert images[0].shape != images[1].shape
    for number, image in enumerate(images):
        np.save(folder / f"{number}.npy", image.numpy())
    answers = elsewhere(WITH_TORCH_ALONE, folder, "kd_det", "detectron2", "timm", "fvcore")
    for answer, image in zip(answers, images, strict=True):
        expected = detect(model, image)
        assert_same(answer, expected.boxes, expected.scores, expected.classes)


def test_plain_detectron2_loads_the_checkpoint(exported):
    model, cfg, folder, _ = exported
    if cfg.MODEL.BACKBONE.NAME == "build_timm_fpn_backbone":
        loaded = load_config(str(folder / "export" / "config.yaml"))  # what the command says it takes
        assert loaded.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and not loaded.KD.TERMS
        return
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (120, 160)), ("b.png", (200, 90))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    answers = elsewhere(WITH_DEFAULT_PREDICTOR, folder, "kd_det", "timm")
    for answer, name in zip(answers, ("a.png", "b.png"), strict=True):
        height, width = read_image(str(folder / name)).shape[:2]
        item = {"image": next(inputs(cfg, [str(folder / name)])), "height": height, "width": width}
        with torch.no_grad():
            expected = model.inference([item])[0]["instances"]
        assert_same(answer, expected.pred_boxes.tensor, expected.scores, expected.pred_classes)


def test_the_block_works(exported):
    with pytest.raises(AssertionError, match="No module named 'kd_det"):
        elsewhere("import kd_det.modeling", exported[2], "kd_det")


def test_another_students_checkpoint_is_refused(exported, monkeypatch, capsys):
    *_, folder, _ = exported
    arguments = ["--config-file", "student.yaml", "--weights", "model_final.pth", "--output", "none"]
    line, _ = ended(folder, monkeypatch, capsys, *arguments, "MODEL.FPN.OUT_CHANNELS", "32")
    assert line.startswith("error: --weights: 'model_final.pth' does not fit the model")
    assert not (folder / "none").exists()


def ended(folder, monkeypatch, capsys, *arguments):
    """The one line on stderr and what is on stdout of a command that ends with a user's error, run in ``folder``."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exited:
        export(arguments)
    out, err = capsys.readouterr()
    assert exited.value.code == 2 and len(err.splitlines()) == 1, err
    return err, out


def test_a_trace_for_one_size_alone_is_refused_and_the_checkpoint_kept(tmp_path, monkeypatch, capsys):
    """The overrides stand behind an option of several values."""
    cfg = load_config("", [*TINY, *TIMM, *SIZES, "MODEL.TIMM.NAME", "mobilevit_xxs"])
    torch.save({"model": build(cfg).state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "student.yaml").write_text(cfg.dump())
    arguments = ["--config-file", "student.yaml", "--weights", "model_final.pth", "--output", "export"]
    arguments += ["--format", "checkpoint", "torchscript", "INPUT.MIN_SIZE_TEST", "64"]
    error, output = ended(tmp_path, monkeypatch, capsys, *arguments)
    assert error.startswith("error: --format torchscript: the trace works only for the image size")
    assert "an image of 32 x 48 fails" in error
    assert output.startswith("checkpoint: export/model.pth, export/config.yaml\n") and "backbone is timm's" in output
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"model.pth", "config.yaml"}
