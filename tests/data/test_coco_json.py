"""Users' own COCO files: registered from the configuration or the command line; faulty ones are refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices

from kd_det.common.errors import SetupError
from kd_det.config import load_config, plain_config
from kd_det.data.coco_json import parse_option, register_coco_json, use_datasets
from kd_det.teacher.classes import class_names
from kd_det.teacher.config import teacher_config
from tests.mini_coco import THINGS, annotation_file, edit_annotations, make_mini_coco
from tests.tiny import student_config, teacher_files


@pytest.fixture(autouse=True)
def catalogue():
    """Forgets what a test registered."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def own(tmp_path):
    """[JSON, image folder] of a set of one's own."""
    root = make_mini_coco(tmp_path / "own", images=2)
    return [str(annotation_file(root, "train2017")), str(root / "coco" / "train2017")]


def test_class_names_are_known_before_the_set_is_loaded(own):
    content = json.loads(Path(own[0]).read_text())
    content["categories"].reverse()  # the order of the logits is that of the ids, not that of the file
    Path(own[0]).write_text(json.dumps(content))
    register_coco_json([["mine", *own]])
    assert MetadataCatalog.get("mine").thing_classes == [thing["name"] for thing in THINGS]
    records = DatasetCatalog.get("mine")
    assert len(records) == 2 and all(os.path.isfile(record["file_name"]) for record in records)
    assert MetadataCatalog.get("mine").evaluator_type == "coco"


def test_configuration_and_option_name_sets(own, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(f"DATASETS:\n  COCO_JSON: [[from_file, {own[0]}, {own[1]}]]\n")
    cfg = load_config(str(tmp_path / "config.yaml"))
    monkeypatch.chdir(tmp_path)
    json_file, folder = (os.path.relpath(path, tmp_path) for path in own)
    use_datasets(cfg, [f"from_option={json_file},{folder}"])
    monkeypatch.chdir("/")  # what a relative path means is settled
    assert [["from_file", *own], ["from_option", json_file, folder]] == cfg.DATASETS.COCO_JSON
    assert len(DatasetCatalog.get("from_file")) == len(DatasetCatalog.get("from_option")) == 2


def test_the_same_set_may_be_registered_again_but_no_other_of_its_name(own, tmp_path):
    register_coco_json([["mine", *own]])
    register_coco_json([["mine", *own], ["mine", os.path.relpath(own[0]), own[1] + "/"]])
    other = make_mini_coco(tmp_path / "other", images=1)
    with pytest.raises(SetupError, match=r"DATASETS.COCO_JSON: there is already a data set 'mine'"):
        register_coco_json([["mine", str(annotation_file(other, "train2017")), own[1]]])
    with pytest.raises(SetupError, match="already a data set 'coco_2017_val'"):
        register_coco_json([["coco_2017_val", *own]])


def test_plain_detectron2_reads_the_plain_configuration(own, tmp_path):
    cfg = load_config("", ["DATASETS.COCO_JSON", [["mine", *own]]])
    assert [["mine", *own]] == cfg.DATASETS.COCO_JSON
    (tmp_path / "plain.yaml").write_text(plain_config(cfg).dump())
    get_cfg().merge_from_file(str(tmp_path / "plain.yaml"))  # refuses a key it does not know


def test_keypoints_of_the_categories(own, tmp_path):
    names = ["nose", "left_eye", "right_eye", "left_ear"]

    def add_keypoints(content):
        content["categories"][0]["keypoints"] = names

    edit_annotations(tmp_path / "own", "train2017", add_keypoints)
    register_coco_json([["mine", *own]])
    assert MetadataCatalog.get("mine").keypoint_names == names
    assert MetadataCatalog.get("mine").keypoint_flip_map == [("left_eye", "right_eye")]
    assert list(create_keypoint_hflip_indices(["mine"])) == [0, 2, 1, 3]


def test_different_keypoints_are_refused(own, tmp_path):
    def add_keypoints(content):
        content["categories"][0]["keypoints"] = ["nose"]
        content["categories"][1]["keypoints"] = ["wheel"]

    edit_annotations(tmp_path / "own", "train2017", add_keypoints)
    with pytest.raises(SetupError, match="'mine': its categories have different keypoints"):
        register_coco_json([["mine", *own]])


@pytest.mark.parametrize("text", ["", "mine", "mine=a.json", "=a.json,images", "mine=a.json,", "mine=a,b.json,images"])
def test_malformed_options(text):
    with pytest.raises(SetupError, match=r"--dataset .* does not have the form name=json,folder"):
        parse_option(text)


@pytest.mark.parametrize("entry", ["mine", ["mine", "a.json"], ["mine", "a.json", ""], ["mine", 3, "images"]])
def test_malformed_entries(entry):
    with pytest.raises(SetupError, match=r"DATASETS.COCO_JSON: .* is not an entry of three strings"):
        register_coco_json([entry])


def test_missing_and_damaged_files(own):
    with pytest.raises(SetupError, match=r"DATASETS.COCO_JSON 'mine': there is no annotation file '.*nowhere.json'"):
        register_coco_json([["mine", "nowhere.json", own[1]]])
    with pytest.raises(SetupError, match=r"'mine': there is no image folder '.*nowhere'"):
        register_coco_json([["mine", own[0], "nowhere"]])
    with pytest.raises(SetupError, match=r"'mine': '.*' cannot be read"):
        register_coco_json([["mine", own[1], own[1]]])
    with open(own[0], "a") as file:
        file.write("]")
    with pytest.raises(SetupError, match=r"is not JSON .* damaged"):
        register_coco_json([["mine", *own]])
    assert "mine" not in DatasetCatalog.list()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "has no section images, annotations, categories"),
        ({"images": [], "annotations": []}, "has no section categories"),
        ({"images": [], "annotations": [], "categories": []}, "has no categories"),
        ({"images": [], "annotations": [], "categories": [{"id": 1}]}, "each needs an id and a name"),
        (
            {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            "2 categories with the id 1",
        ),
    ],
)
def test_files_that_are_not_coco_instances(own, content, message):
    Path(own[0]).write_text(json.dumps(content))
    with pytest.raises(SetupError, match=f"'mine': .*{message}"):
        register_coco_json([["mine", *own]])


def test_the_teachers_own_sets_give_its_class_names(own, tmp_path):
    files = teacher_files(tmp_path)
    opts = ["DATASETS.COCO_JSON", [["teachers", *own]], "DATASETS.TRAIN", ("teachers",)]
    cfg = teacher_config(student_config(files, "KD.TEACHER.OPTS", opts))
    assert class_names(cfg) == [thing["name"] for thing in THINGS]
    assert "COCO_JSON" not in cfg.DATASETS
    with pytest.raises(SetupError, match=r"KD.TEACHER.CONFIG_FILE .* 'gone': there is no annotation .* remove it with"):
        teacher_config(student_config(files, "KD.TEACHER.OPTS", ["DATASETS.COCO_JSON", [["gone", "a.json", own[1]]]]))
