"""tools/check_dataset.py: what it prints of the miniature COCO, and its exit codes."""

from __future__ import annotations

import shutil

import pytest

from tests.mini_coco import THINGS, annotation_file, edit_annotations
from tests.tiny import student_config, teacher_files
from tests.tools.commands import error_of, run_tool


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    sets = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "DATASETS.TRAIN", ("coco_2017_train",)]
    return teacher_files(tmp_path_factory.mktemp("teacher"), *sets)


@pytest.fixture
def own(coco, tmp_path):
    """A copy of the miniature COCO to edit: its root, and JSON and folder of its training set."""
    shutil.copytree(coco / "coco", tmp_path / "coco")
    return tmp_path, annotation_file(tmp_path, "train2017"), tmp_path / "coco" / "train2017"


def test_a_sound_set(own):
    _, json_file, folder = own
    result = run_tool("check_dataset", "--dataset", f"mine={json_file},{folder}", "--sizes")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "mine: 4 images, 0 of them without objects; 12 objects in 80 classes" in result.stdout
    assert "fault" not in result.stdout


def test_faults_of_the_images(own):
    root, json_file, folder = own
    (folder / "000000000002.jpg").unlink()
    edit_annotations(root, "train2017", lambda content: content["images"][0].update(width=1000))
    result = run_tool("check_dataset", "--dataset", f"mine={json_file},{folder}", "--sizes")
    assert result.returncode == 1, result.stderr[-2000:]
    assert "fault: 1 image files are missing" in result.stdout and "000000000002.jpg" in result.stdout
    assert "is 128x96, the JSON says 1000x96" in result.stdout


def test_configuration_with_a_teacher(own, teacher, tmp_path):
    root, json_file, folder = own

    def reorder(content):
        content["categories"][0]["id"] = 1000  # "person" comes last
        for annotation in content["annotations"]:
            annotation["category_id"] = 1000 if annotation["category_id"] == 1 else annotation["category_id"]

    edit_annotations(root, "train2017", reorder)
    entry = ["mine", str(json_file), str(folder)]
    sets = ["DATASETS.COCO_JSON", [entry], "DATASETS.TRAIN", ("mine",), "DATASETS.TEST", ("coco_2017_val",)]
    config = tmp_path / "student.yaml"
    config.write_text(student_config(teacher, *sets, "MODEL.ROI_HEADS.NUM_CLASSES", 80).dump())
    found = run_tool("check_dataset", "--config-file", config, DETECTRON2_DATASETS=root)
    assert found.returncode == 1, found.stderr[-2000:]
    assert "coco_2017_val: 4 images" in found.stdout
    assert "the teacher has the same classes in another order. Set KD.TEACHER.CLASS_MAP to ['*']" in found.stdout
    assert "mine and coco_2017_val have other classes" in found.stdout

    mapped = ["--opts", "KD.TEACHER.CLASS_MAP", "['*']"]
    alone = run_tool("check_dataset", "mine", "--config-file", config, *mapped, DETECTRON2_DATASETS=root)
    assert alone.returncode == 0, alone.stdout + alone.stderr[-2000:]
    assert f"CLASS_MAP pairs {len(THINGS)} of the 80 classes" in alone.stdout and "coco_2017_val" not in alone.stdout


def test_masks_that_the_model_needs_and_the_set_lacks(own, teacher, tmp_path):
    root, json_file, folder = own
    edit_annotations(root, "train2017", lambda content: content["annotations"][0].pop("segmentation"))
    settings = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "KD.TEACHER.CONFIG_FILE", ""]
    config = tmp_path / "student.yaml"
    config.write_text(student_config(teacher, *settings).dump())
    command = ["--config-file", config, "--dataset", f"mine={json_file},{folder}"]
    boxes = run_tool("check_dataset", *command)
    masks = run_tool("check_dataset", *command, "--opts", "MODEL.MASK_ON", True)
    assert (boxes.returncode, masks.returncode) == (0, 1), masks.stderr[-2000:]
    assert "mine: 1 objects have no segmentation; MODEL.MASK_ON must be False" in masks.stdout


def test_user_errors(own):
    _, json_file, folder = own
    assert "form name=json,folder" in error_of(run_tool("check_dataset", "--dataset", "mine"))
    json_file.write_text("{")
    line = error_of(run_tool("check_dataset", "--dataset", f"mine={json_file},{folder}"))
    assert "DATASETS.COCO_JSON 'mine'" in line and "is no JSON" in line
    assert "Did you mean 'coco_2017_val'?" in error_of(run_tool("check_dataset", "coco_2017_vla"))


def test_help_has_an_example():
    assert "python tools/check_dataset.py --dataset" in run_tool("check_dataset", "--help").stdout
