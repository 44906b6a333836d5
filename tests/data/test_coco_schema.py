"""The schema of COCO JSON: what is refused, by index, at training's start-up and in the report alike; what passes."""

from __future__ import annotations

import json
import os
import re

import pytest

from kd_det.common.errors import SetupError
from kd_det.data.checks import check_coco_json
from kd_det.data.report import examine, format_report
from tests.data.own_coco import SIZE, own_coco


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "set.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    return write


def first(section, **values):
    """Sets values of a section's first item; ``...`` removes one."""

    def edit(content):
        item = content[section][0]
        for key, value in values.items():
            if value is ...:
                del item[key]
            else:
                item[key] = value

    return edit


def annotation(**values):
    return first("annotations", **values)


def image(**values):
    return first("images", **values)


NO_BOX = r"annotations have no bbox of four numbers within ±100000 \(annotations\[0\]: "
NO_MASK = r"annotations have a segmentation that is neither .*annotations\[0\]"
NO_RUNS = r"annotations have run lengths that do not add up to their size \(annotations\[0\]"
PIXELS = SIZE[0] * SIZE[1]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (annotation(bbox=...), NO_BOX + "None"),
        (annotation(bbox="1, 2, 3, 4"), NO_BOX),
        (annotation(bbox=[1, 2, 3]), NO_BOX + re.escape("[1, 2, 3]")),
        (annotation(bbox=[1, 2, 3, 4, 5]), NO_BOX),
        (annotation(bbox=[1, 2, "3", 4]), NO_BOX),
        (annotation(bbox=[1, 2, True, 4]), NO_BOX),
        (annotation(bbox=[1, 2, float("inf"), 4]), NO_BOX + re.escape("[1, 2, inf, 4]")),
        (annotation(bbox=[float("nan"), 2, 3, 4]), NO_BOX),
        (annotation(bbox=[1, float("nan"), 3, 4]), NO_BOX),
        (annotation(bbox=[1, 2, 1e308, 4]), NO_BOX),
        (annotation(bbox=[1, 2, 10**400, 4]), NO_BOX),
        (annotation(category_id=...), r"annotations have no category_id \(annotations\[0\]: None"),
        (annotation(category_id=[1]), r"annotations have no category_id"),
        (annotation(category_id=2), r"annotations have a category_id that the file does not define"),
        (annotation(image_id=...), r"annotations have no image_id"),
        (annotation(image_id="1"), r"annotations have a image_id that the file .* define \(annotations\[0\]: '1'"),
        (annotation(id=...), r"annotations have no id"),
        (annotation(id={}), r"annotations have no id"),
        (annotation(id=2), r"annotations have an id that is listed twice \(annotations\[1\]: 2"),
        (annotation(iscrowd="0"), r'annotations have an "iscrowd" that is neither 0 nor 1'),
        (annotation(iscrowd=None), r'annotations have an "iscrowd"'),
        (annotation(ignore=1), r'annotations have "ignore", which Detectron2 refuses'),
        (annotation(area=-5), r"annotations have an area that is not a number"),
        (annotation(segmentation=[1, 2, 3, 4, 5, 6]), NO_MASK),
        (annotation(segmentation=[[1, 2, 3, 4, 5, None]]), NO_MASK),
        (annotation(segmentation=[[0, 0, 1e5, 0, 0, 1e5] * 9]), r"have polygons longer than 1000000 pixels"),
        (annotation(segmentation={"counts": [PIXELS]}), r'have run lengths without a "size"'),
        (annotation(segmentation={"size": [5, 5], "counts": [25]}), r"lengths whose size is not that of their image"),
        (annotation(segmentation={"size": SIZE, "counts": [PIXELS - 1]}), NO_RUNS),
        (annotation(segmentation={"size": SIZE, "counts": [-1, PIXELS + 1]}), NO_RUNS),
        (annotation(segmentation={"size": SIZE, "counts": "PPYo0"}), NO_RUNS),
        (annotation(segmentation={"size": SIZE, "counts": "o"}), NO_RUNS),
        (annotation(keypoints=[1, 2]), r"annotations have keypoints that are not a list of numbers x, y, visibility"),
        (annotation(num_keypoints="3"), r"annotations have a num_keypoints that is not a number"),
        (image(height=...), r"images have no height and width of 1 to 100000 pixels \(images\[0\]: \[None, 128\]"),
        (image(height="96"), r"images have no height and width"),
        (image(width=0), r"images have no height and width"),
        (image(width=float("nan")), r"images have no height and width"),
        (image(width=1e5, height=1e5), r"images have more than 178956970 pixels"),
        (image(id=...), r"images have no id"),
        (image(id=[1]), r"images have no id"),
        (image(id=2), r"images have an id that is listed twice \(images\[1\]: 2"),
        (image(id="a"), r"images have ids of which some are numbers and some are text"),
        (image(file_name=...), r"images have no file_name"),
        (image(file_name="a\0b"), r"images have no file_name"),
        (image(file_name="\ud800"), r"images have no file_name"),
        (lambda content: content["images"].append(3), r"images are not JSON objects \(images\[6\]: 3"),
        (lambda content: content["annotations"].append([]), r"are not JSON objects \(annotations\[30\]: \[\]"),
    ],
)
def test_faults_are_listed_by_index_by_training_and_by_the_report(write, edit, expected):
    content = own_coco()
    edit(content)
    path = write(content)
    with pytest.raises(SetupError, match=rf"^DATASETS\.TRAIN 'mine': .*{expected}.*kd-det check-data") as raised:
        check_coco_json(path, "DATASETS.TRAIN 'mine'")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1500
    report = examine("mine", path, os.path.dirname(path))
    assert any(finding.stops and re.search(expected, finding.text) for finding in report.findings)
    assert "fault: 1 " in format_report(report)


def test_the_first_of_many_are_listed(write):
    content = own_coco()
    for item in content["annotations"][4:]:
        item["bbox"] = [1, 2]
    with pytest.raises(SetupError) as raised:
        check_coco_json(write(content), "DATASETS.TRAIN 'mine'")
    examples = "(annotations[4]: [1, 2]; annotations[5]: [1, 2]; annotations[6]: [1, 2]; ...)"
    assert f"26 annotations have no bbox of four numbers within ±100000 {examples}" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not JSON"),
        (b"\x00" * 50, "is not JSON"),
        (b'{"images": [1, 2', "is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "is not JSON .*4300 digits"),
        (json.dumps(own_coco()).encode("utf-16"), "is not JSON in UTF-8 .*save it in UTF-8"),
        (b"\xef\xbb\xbf{}", "is not JSON .*BOM"),
        (b"null", "has no section images, annotations, categories"),
        ({"images": {}, "annotations": [], "categories": [{"id": 1, "name": "a"}]}, "has no section images"),
        ({**own_coco(), "categories": [3]}, r"categories\[0\] is 3; each needs an id and a name"),
        ({**own_coco(), "categories": [{"id": [1], "name": "a"}]}, "each needs an id and a name"),
        ({**own_coco(), "categories": [{"id": 1, "name": 5}]}, "each needs an id and a name"),
        ({**own_coco(), "categories": [{"id": 1, "name": "a", "keypoints": 3}]}, "has the keypoints 3"),
        ({**own_coco(), "categories": [{"id": 1, "name": "a"}, {"id": "b", "name": "b"}]}, "numbers and .* with text"),
    ],
)
def test_files_that_are_not_coco_json(write, content, expected):
    path = write(content)
    for look in (lambda: check_coco_json(path, "mine"), lambda: examine("mine", path, "")):
        with pytest.raises(SetupError, match=f"^mine: .*{expected}"):
            look()


def test_no_file_at_all(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    no_file = "it is not a file"
    for path, expected in ((tmp_path, no_file), (tmp_path / "pipe", no_file), ("a\0b", "there is no")):
        with pytest.raises(SetupError, match=expected):
            check_coco_json(str(path), "mine")


def crowds_without(content):
    for item in content["annotations"]:
        item["iscrowd"] = True
        del item["segmentation"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: None,
        annotation(iscrowd=False, ignore=0, area=None, num_keypoints=None),
        annotation(iscrowd=...),
        annotation(bbox=[-5, -5, 500, 0]),  # clipped, and left out
        annotation(segmentation=[]),
        annotation(segmentation=[[1, 2, 3, 4], [1, 2, 3, 4, 5]]),  # Detectron2 leaves the object out
        annotation(keypoints=[], segmentation=None),
        annotation(id="a17", image_id=2.0, extra={"a": [[[]]]}),
        image(height=96.0, width=128.0, license="x"),
        crowds_without,
    ],
)
def test_what_detectron2_takes_passes(write, edit):
    content = own_coco()
    edit(content)
    coco = check_coco_json(write(content), "mine")
    assert not coco.faults and (len(coco.images), len(coco.annotations)) == (6, 30)


def test_minival_may_repeat_annotations(tmp_path):
    content = own_coco()
    content["annotations"].append(content["annotations"][0])
    (tmp_path / "instances_minival2014.json").write_text(json.dumps(content))
    assert len(check_coco_json(str(tmp_path / "instances_minival2014.json"), "mine").annotations) == 31
