"""tools/suggest_beta.py for a classifier: the mean gap of its teacher on the training data."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch

from classification.config import load_config
from classification.data import build_data
from classification.models import create_model
from classification.studies.beta import classifier_gaps, is_classification
from kd_det.common.beta import MeasuredGaps, describe, write
from kd_det.common.errors import SetupError
from tests.classification.conftest import ROOT, command


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("digits/pairs/resnet20_resnet8.yaml", True),
        (("coco/dkd_r101_r18.yaml", "cifar100/methods/kd.yaml"), True),
        ("cifar100/pairs/swin_t_r18.yaml", True),  # of several bases
        ("configs/coco/dkd_r101_r18.yaml", False),
        ("configs/digits_det/dkd.yaml", False),
    ],
)
def test_the_package_of_a_configuration(config, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert is_classification(config) is expected


def test_no_configuration(tmp_path):
    with pytest.raises(SetupError, match="--config-file: no file"):
        is_classification(str(tmp_path / "a.yaml"))
    for text, expected in (("a: [", "line 1: this is not valid YAML"), ("", "is empty; give a YAML file")):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(SetupError, match=expected):
            is_classification(str(tmp_path / "a.yaml"))


@pytest.fixture
def settings(teacher_file):
    return ["TEACHER.NAME", "resnet14", "TEACHER.WEIGHTS", str(teacher_file)]


def gaps_by_hand(teacher_file):
    """The gaps with the model alone, image by image."""
    model = create_model("resnet14", 10)
    model.load_state_dict(torch.load(teacher_file, weights_only=True)["model"])
    model.eval()
    gaps = []
    for batch in build_data(load_config(), "cpu").train.plain():
        with torch.no_grad():
            answers = model(batch.images).tolist()
        for logits, label in zip(answers, batch.labels.tolist(), strict=True):
            own = logits.pop(label)
            gaps.append(own - max(logits))
    return np.array(gaps)


def test_the_gaps_are_those_of_the_model(settings, teacher_file):
    gaps = classifier_gaps(load_config("", settings))
    expected = gaps_by_hand(teacher_file)
    np.testing.assert_allclose(gaps.values.numpy(), expected, atol=1e-4)
    assert gaps.mean == pytest.approx(expected.mean(), abs=1e-5) and gaps.wrong == (expected < 0).mean()
    few = classifier_gaps(load_config("", settings), images=479)  # of 1437: every third
    np.testing.assert_allclose(few.values.numpy(), expected[::3], atol=1e-4)
    assert len(classifier_gaps(load_config("", settings), images=9999).values) == 1437


def test_refused_requests(settings):
    with pytest.raises(SetupError, match="--images is 0"):
        classifier_gaps(load_config("", settings), images=0)
    with pytest.raises(SetupError, match=r"TEACHER\.NAME is empty"):
        classifier_gaps(load_config())
    with pytest.raises(SetupError, match=r"TEACHER\.WEIGHTS: there is no file"):
        classifier_gaps(load_config("", [*settings, "TEACHER.WEIGHTS", "nowhere.pth"]))


def test_the_report_by_hand(tmp_path):
    gaps = MeasuredGaps("resnet14", "images of a set", "images", torch.tensor([7.0, 9.5, -1.0, 12.44]), "for DKD.BETA")
    text = describe(gaps)
    assert "teacher resnet14, 4 images of a set" in text
    assert re.search(r"mean gap z_t - z_max +6\.98 ", text) and "suggested beta        4.0 for DKD.BETA" in text
    assert "25.0% of the images" in text and "50% 8.25" in text
    written = write(gaps, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["gaps.json", "gaps.png", "gaps.svg"]
    content = json.loads(written[0].read_text())
    assert content["suggested_beta"] == pytest.approx(4.0, abs=0.05)
    assert content["gaps"] == [7.0, 9.5, -1.0, 12.44]
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write(gaps, tmp_path / "new" / "folder")] == before


WITHOUT_DETECTRON2 = """
import runpy, sys
sys.modules["detectron2"] = None  # importing it is an ImportError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_command_line_does_without_detectron2(settings, teacher_file, tmp_path, tool):
    without_detectron2 = [sys.executable, "-c", WITHOUT_DETECTRON2, str(ROOT / "tools/suggest_beta.py")]
    line = ["--config-file", "digits/pairs/resnet20_resnet8.yaml", "--output-dir", "out"]
    result = command([*without_detectron2, *line, *settings], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    mean = gaps_by_hand(teacher_file).mean()
    assert "1437 training images of digits" in result.stdout and f"z_max  {mean:.2f}" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gaps.json", "gaps.png", "gaps.svg"}

    refused = tool(tmp_path, "suggest_beta", *line, "--on", "coco_2017_val", *settings)
    assert refused.returncode == 2 and refused.stderr.startswith("error: --on coco_2017_val: it is for detectors")
