"""kd-det check-data: what it prints of the miniature COCO, and its exit codes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from kd_det.engine.commands import check_data
from tests.knowledge import stored_image, write_knowledge
from tests.mini_coco import THINGS, annotation_file, edit_annotations
from tests.tiny import student_config, teacher_files
from tests.tools.commands import error_of, run_here


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    sets = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "DATASETS.TRAIN", ("coco_2017_train",)]
    return teacher_files(tmp_path_factory.mktemp("teacher"), *sets)


@pytest.fixture
def own(coco, tmp_path):
    """A copy of the miniature COCO to edit: its root, and JSON and folder of its training set."""
    shutil.copytree(coco / "coco", tmp_path / "coco")
    return tmp_path, annotation_file(tmp_path, "train2017"), tmp_path / "coco" / "train2017"


@pytest.fixture
def check(capsys):
    """``check(*arguments)`` is the command in this process: its exit code, and what it wrote."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            check_data([*map(str, arguments)])
        return ended.value.code, capsys.readouterr()

    yield run
    if "mine" in DatasetCatalog.list():
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")


@pytest.fixture
def mine(own):
    _, json_file, folder = own
    return "--dataset", f"mine={json_file},{folder}"


def test_a_sound_set(own):
    _, json_file, folder = own
    result = run_here("check-data", "--dataset", f"mine={json_file},{folder}", "--sizes")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "mine: 4 images, 0 of them without objects; 12 objects in 80 classes" in result.stdout
    assert "fault" not in result.stdout


def test_faults_of_the_images(own, mine, check):
    root, _, folder = own
    (folder / "000000000002.jpg").unlink()
    edit_annotations(root, "train2017", lambda content: content["images"][0].update(width=1000))
    code, written = check(*mine, "--sizes")
    assert code == 1
    assert "fault: 1 image files are missing" in written.out and "000000000002.jpg" in written.out
    assert "is 128x96, the JSON says 1000x96" in written.out


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
    found = run_here("check-data", "--config-file", config, datasets=root)
    assert found.returncode == 1, found.stderr[-2000:]
    assert "coco_2017_val: 4 images" in found.stdout
    assert "the teacher has the same classes in a different order. Set KD.TEACHER.CLASS_MAP to ['*']" in found.stdout
    assert "mine and coco_2017_val have different classes" in found.stdout

    mapped = ["--opts", "KD.TEACHER.CLASS_MAP", "['*']"]
    alone = run_here("check-data", "mine", "--config-file", config, *mapped, datasets=root)
    assert alone.returncode == 0, alone.stdout + alone.stderr[-2000:]
    assert f"CLASS_MAP pairs {len(THINGS)} of the 80 classes" in alone.stdout and "coco_2017_val" not in alone.stdout


def test_masks_that_the_model_needs_and_the_set_lacks(own, mine, check, teacher, tmp_path):
    edit_annotations(own[0], "train2017", lambda content: content["annotations"][0].pop("segmentation"))
    settings = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "KD.TEACHER.CONFIG_FILE", ""]
    config = tmp_path / "student.yaml"
    config.write_text(student_config(teacher, *settings).dump())
    assert check("--config-file", config, *mine)[0] == 0
    code, written = check("--config-file", config, *mine, "--opts", "MODEL.MASK_ON", True)
    assert code == 1 and "mine: 1 objects have no segmentation; MODEL.MASK_ON must be False" in written.out


def test_user_errors(own, mine, check):
    assert "form name=json,folder" in error_of(run_here("check-data", "--dataset", "mine"))
    own[1].write_text("{")
    code, written = check(*mine)
    assert code == 2 and "DATASETS.COCO_JSON 'mine'" in written.err and "is not JSON" in written.err
    code, written = check("coco_2017_vla")
    assert code == 2 and "Did you mean 'coco_2017_val'?" in written.err


def test_help_has_an_example(check):
    code, written = check("--help")
    assert code == 0 and "kd-det check-data --dataset" in written.out


def test_faults_of_the_annotations_are_listed_by_index(own, mine, check):
    def damage(content):
        first, second, third, fourth, *_ = content["annotations"]
        del first["bbox"]
        second["bbox"][2] = float("inf")
        third["category_id"] = None
        fourth["iscrowd"] = 1
        content["images"][1]["height"] = "96"

    edit_annotations(own[0], "train2017", damage)
    code, written = check(*mine)
    assert code == 1
    assert "fault: 1 images have no height and width of 1 to 100000 pixels (images[1]: ['96', 128])" in written.out
    assert "fault: 2 annotations have no bbox of four numbers within ±100000 (annotations[0]: None; " in written.out
    assert "fault: 1 annotations have no category_id (annotations[2]: None)" in written.out
    assert "1 crowds" in written.out


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"images": 3}', "\x00", ""])
def test_damaged_files_are_one_line(own, mine, check, content):
    own[1].write_text(content)
    code, written = check(*mine)
    assert code == 2 and written.err.startswith("error: DATASETS.COCO_JSON 'mine': ") and written.err.count("\n") == 1


def test_nothing_but_crowds(own, mine, check):
    edit_annotations(own[0], "train2017", lambda content: [item.update(iscrowd=1) for item in content["annotations"]])
    code, written = check(*mine)
    assert code == 1 and "fault: no image has an object to train on" in written.out and "12 crowds" in written.out


def test_sizes_decodes_with_the_trainers_reader(own, mine, check):
    _, _, folder = own
    whole = folder / "000000000001.jpg"
    whole.write_bytes(whole.read_bytes()[:-400])
    assert Image.open(whole).size == (128, 96)  # its header is intact
    Image.fromarray(np.full((96, 128), 500, dtype=np.int32)).save(folder / "deep.tif")
    (folder / "deep.tif").replace(folder / "000000000003.jpg")
    code, written = check(*mine, "--sizes")
    assert code == 1 and "fault: 2 images cannot be read, or their size is not the one in the JSON" in written.out
    assert "000000000001.jpg': image file is truncated" in written.out
    assert check(*mine)[0] == 0


@pytest.mark.parametrize("last, code", [("toothbrush", 0), ("comb", 1)])
def test_classes_of_stored_knowledge(tmp_path, mine, check, last, code):
    names = [*(thing["name"] for thing in THINGS[:-1]), last]
    folder = write_knowledge(tmp_path / "knowledge", {}, lambda record: stored_image(torch.zeros(0, 4)), names)
    terms = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "DATASETS.TRAIN", "('mine',)", "KD.TERMS", "('dkd',)"]
    ended, printed = check(*mine, "--opts", *terms, "KD.TEACHER.STORED", folder)
    found = f"Distilled classes: all 80, from KD.TEACHER.STORED {folder!r}" if code == 0 else "class 79 is 'comb'"
    assert ended == code and found in printed.out


def test_unlabeled_images(own, tmp_path):
    _, json_file, folder = own
    (tmp_path / "alone.json").write_text('{"images": [{"id": 1, "file_name": "x.jpg", "height": 9, "width": 9}]}')
    sets = ["--dataset", f"mine={json_file},{folder}", "--dataset", f"photos={folder}/", "--sizes"]
    result = run_here("check-data", *sets)
    assert result.returncode == 0 and "photos: 4 unlabelled images" in result.stdout, result.stderr
    assert "mine and photos have 4 images in common" in result.stdout and "; one of them is unlabelled" in result.stdout
    alone = ["--dataset", f"alone={tmp_path / 'alone.json'},{folder}"]
    result = run_here("check-data", *alone)
    assert result.returncode == 1 and "fault: 1 image files are missing" in result.stdout
    result = run_here("check-data", *sets[:2], "--opts", "DATASETS.UNLABELED", "('mine',)")
    assert result.returncode == 0 and "mine: 4 unlabelled images" in result.stdout
    assert "note: 4 images have annotations, which DATASETS.UNLABELED ignores" in result.stdout
