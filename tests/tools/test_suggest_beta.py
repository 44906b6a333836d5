"""kd-det suggest-beta: the mean gap of a teacher on a data set, and the suggested beta."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.structures import Boxes

import kd_det.data  # noqa: F401  (registers digits_det_val)
from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.studies.commands import suggest_beta
from kd_det.studies.teacher_confidence import detector_gaps
from tests.mini_coco import annotation_file
from tests.tiny import student_config, teacher_files
from tests.tools.commands import run_here

SIZE = ["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 200]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Folder of a student's configuration, and its teacher's files."""
    folder = tmp_path_factory.mktemp("beta")
    sets = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "DATASETS.TRAIN", ("coco_2017_train",)]
    files = teacher_files(folder, *sets)
    (folder / "student.yaml").write_text(student_config(files, *sets, *SIZE).dump())
    return folder, files


def measured(setup, coco, *arguments):
    files = ["--config-file", setup[0] / "student.yaml", "--output-dir", setup[0] / "gaps"]
    result = run_here("suggest-beta", *files, *arguments, datasets=coco)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def gaps_by_hand(files, coco, split):
    """The gaps with plain Detectron2, image by image and box by box."""
    model = build_model(load_config(files[0]))
    model.load_state_dict(torch.load(files[1], weights_only=True)["model"])
    model.eval()
    content = json.loads(annotation_file(coco, split).read_text())
    places = {category["id"]: place for place, category in enumerate(content["categories"])}
    heads, gaps = model.roi_heads, []
    for image in content["images"]:
        pixels = read_image(str(coco / "coco" / split / image["file_name"]), "BGR")
        tensor = torch.as_tensor(pixels.transpose(2, 0, 1).copy())
        with torch.no_grad():
            maps = model.backbone(model.preprocess_image([{"image": tensor}]).tensor)
        for item in content["annotations"]:
            if item["image_id"] != image["id"]:
                continue
            x, y, w, h = item["bbox"]
            box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)
            with torch.no_grad():
                pooled = heads.box_pooler([maps[name] for name in heads.box_in_features], [Boxes(box)])
                logits = heads.box_predictor(heads.box_head(pooled))[0][0].tolist()
            target = logits.pop(places[item["category_id"]])
            gaps.append(target - max(logits))
    return np.array(gaps)


def test_the_gap_is_that_of_plain_detectron2(setup, coco):
    text = measured(setup, coco, "--on", "coco_2017_val")
    expected = gaps_by_hand(setup[1], coco, "val2017")
    assert "12 ground-truth boxes of coco_2017_val" in text
    assert float(re.search(r"mean gap z_t - z_max +(-?[\d.]+)", text)[1]) == pytest.approx(expected.mean(), abs=0.006)
    assert f"{(expected < 0).mean():.1%} of the boxes" in text
    told = [float(value) for value in re.findall(r"\d+% (-?[\d.]+)", text.split("quantiles")[1].splitlines()[0])]
    np.testing.assert_allclose(told, np.quantile(expected, [0.05, 0.25, 0.5, 0.75, 0.95]), atol=0.006)
    assert "suggested beta        0.25 for KD.DKD.BETA (T = 1)" in text
    assert not any(word in text for word in ("classifier", "CIFAR", "T = 4"))
    written = json.loads((setup[0] / "gaps" / "gaps.json").read_text())
    assert written["mean_gap"] == pytest.approx(expected.mean(), abs=1e-4) and len(written["gaps"]) == 12
    assert written["suggested_beta"] == 0.25
    assert {path.name for path in (setup[0] / "gaps").iterdir()} == {"gaps.json", "gaps.png", "gaps.svg"}


def test_some_images_of_the_training_set(setup, coco):
    assert "6 ground-truth boxes of coco_2017_train" in measured(setup, coco, "--images", 2)


def test_boxes_of_unmatched_classes_are_left_out(setup, coco):
    content = json.loads(annotation_file(coco, "train2017").read_text())
    used = content["annotations"][0]["category_id"]
    name = next(category["name"] for category in content["categories"] if category["id"] == used)
    count = sum(item["category_id"] == used for item in content["annotations"])
    text = measured(setup, coco, "KD.TEACHER.CLASS_MAP", f"['{name}']")
    assert f", {count} ground-truth boxes" in text


@pytest.mark.parametrize(
    ("overrides", "dataset", "images", "message"),
    [
        ([], "", 0, "--images is 0"),
        ([], "coco_2017_vl", 9, "--on: there is no data set 'coco_2017_vl'. Did you mean"),
        ([], "digits_det_val", 9, "'digits_det_val' has 10 classes but MODEL.ROI_HEADS.NUM_CLASSES is 80"),
        (["DATASETS.TRAIN", ()], "", 9, "DATASETS.TRAIN is empty"),
    ],
)
def test_refused_requests(setup, overrides, dataset, images, message):
    with pytest.raises(SetupError) as refused:
        detector_gaps(load_config(str(setup[0] / "student.yaml"), overrides), dataset, images)
    assert message in str(refused.value)


def test_user_errors_are_one_line(setup, capsys):
    with pytest.raises(SystemExit) as exited:
        suggest_beta(["--config-file", str(setup[0] / "student.yaml"), "KD.TEACHER.CONFIG_FILE", ""])
    line = capsys.readouterr().err
    assert exited.value.code == 2 and line.count("\n") == 1 and "error: KD.TEACHER.CONFIG_FILE is empty" in line


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        suggest_beta(["--help"])
    assert "kd-det suggest-beta --config-file" in capsys.readouterr().out
