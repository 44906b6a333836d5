"""The report on a COCO file, for hand-made files with one fault each."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from kd_det.data.report import compare_sets, examine, format_report
from kd_det.teacher.classes import compare_classes


def box(number, image, category, bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


@pytest.fixture
def content(tmp_path):
    """Three images of 120 x 200 (the third without objects); a small, a medium and a large box, a crowd."""
    for number in (1, 2, 3):
        Image.new("RGB", (200, 120)).save(tmp_path / f"{number}.png")
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 120, "width": 200} for i in (1, 2, 3)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "bird"}],
        "annotations": [
            box(1, 1, 7, [0, 0, 10, 10]),
            box(2, 1, 3, [20, 20, 40, 40]),
            box(3, 2, 7, [0, 0, 200, 100]),
            box(4, 2, 7, [0, 0, 50, 50], iscrowd=1),
        ],
    }


@pytest.fixture
def report(content, tmp_path):
    """The report after ``edit(content)``."""

    def write(edit=None, **options):
        if edit:
            edit(content)
        (tmp_path / "set.json").write_text(json.dumps(content))
        return examine("mine", str(tmp_path / "set.json"), str(tmp_path), **options)

    return write


def found(report):
    return [(finding.text, finding.stops) for finding in report.findings]


def test_counts_and_sizes(report):
    sound = report()
    assert (sound.images, sound.empty, sound.crowds) == (3, 1, 1)
    assert sound.classes == {"cat": 1, "dog": 2, "bird": 0} and list(sound.classes) == ["cat", "dog", "bird"]
    assert sound.sizes == {"small": 1, "medium": 1, "large": 1}
    np.testing.assert_allclose(sound.sides, [10, 40, np.sqrt(200 * 100)])
    assert found(sound) == [("1 classes have no object (bird)", False)]


def test_limits_of_the_sizes_are_cocos(report):
    def three(content):
        sides = (31.9, 32, 96)
        content["annotations"] = [box(i, 1, 7, [0, 0, side, side]) for i, side in enumerate(sides)]

    assert report(three).sizes == {"small": 1, "medium": 1, "large": 1}


def test_text(report):
    text = format_report(report())
    assert "mine: 3 images, 1 of them without objects; 3 objects in 3 classes, 1 crowds" in text
    assert "dog         2   66.7%" in text
    assert "1 small, 1 medium, 1 large" in text and "50% 40" in text
    assert "  note: 1 classes have no object (bird)" in text


def remove(content):
    content["annotations"] = []


@pytest.mark.parametrize(
    ("edit", "text", "stops"),
    [
        (lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 9]), "1 boxes have no area; .*annotation 1", False),
        (lambda c: c["annotations"][0].update(bbox=[195, 5, 9, 9]), "1 boxes extend .* beyond .*annotation 1", False),
        (lambda c: c["annotations"][0].update(bbox=[-5, 5, 9, 9]), "1 boxes extend .* beyond .*annotation 1", False),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "1 annotations have no bbox of four numbers", True),
        (lambda c: c["annotations"][0].pop("bbox"), "1 annotations have no bbox of four numbers", True),
        (lambda c: c["annotations"][0].update(image_id=99), r"1 annotations have a image_id .*\[0\]: 99\)", True),
        (lambda c: c["annotations"][0].update(category_id=99), r"1 annotations have a category_id .*\[0\]: 99\)", True),
        (lambda c: c["annotations"][0].update(id=2), r"1 annotations have an id that is listed twice .*\[1\]: 2", True),
        (lambda c: c["annotations"][0].update(ignore=1), '1 annotations have "ignore"', True),
        (
            lambda c: c["annotations"].append(box(9, 1, 7, [0, 0, 10, 10])),
            r"1 objects have the same box .*image 1, box \[0, 0, 10, 10\]",
            False,
        ),
        (lambda c: c["images"][1].update(file_name="1.png"), r"1 image files are listed twice .*1\.png", False),
        (lambda c: c["images"][1].update(file_name="no.png"), r"1 image files are missing .*no\.png", True),
        (lambda c: c["images"].append(dict(c["images"][0], file_name="3.png")), "1 images have an id .* twice", True),
        (lambda c: c["images"][0].pop("height"), "1 images have no height and width", True),
        (lambda c: c["categories"][2].update(name="cat"), r"1 class names are listed twice \(cat\)", False),
        (remove, "no image has an object to train on", True),
    ],
)
def test_one_thing_wrong(report, edit, text, stops):
    matching = [finding for finding in report(edit).findings if re.search(text, finding.text)]
    assert [finding.stops for finding in matching] == [stops]


def test_edges_of_the_image_are_inside(report):
    inside = report(lambda content: content["annotations"][0].update(bbox=[-0.5, 0, 200.9, 120.6]))
    assert not any("beyond" in text for text, _ in found(inside))


def test_image_sizes_are_compared_on_demand(report, tmp_path):
    def narrower(content):
        content["images"][1]["width"] = 199

    assert not any("size" in text for text, _ in found(report(narrower)))
    told = [text for text, stops in found(report(sizes=True)) if stops]
    assert len(told) == 1 and "2.png is 200x120, the JSON says 199x120" in told[0]
    (tmp_path / "3.png").write_bytes(b"no image")
    assert any("2 images cannot be read, or their size" in text for text, _ in found(report(sizes=True)))


def test_images_turned_by_exif_have_the_size_that_is_trained_on(report, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (200, 120)).save(tmp_path / "1.jpg", exif=exif)

    def turned(content):
        content["images"][0].update(file_name="1.jpg", width=120, height=200)

    assert not any("size" in text for text, _ in found(report(turned, sizes=True)))


def test_sets_of_one_training(report):
    train = report()
    (other,) = compare_sets([train, report(lambda content: content["images"].pop(0))])[:1]
    assert "2 images in common" in other.text and not other.stops

    def renamed(content):
        content["categories"][0]["name"] = "wolf"
        content["images"] = []

    (finding,) = compare_sets([train, report(renamed)])
    assert "different classes" in finding.text and finding.stops


@pytest.mark.parametrize(
    ("teacher", "verdict", "suggestion", "fits"),
    [
        (["cat", "dog"], "same classes in the same order", [], True),
        (["dog", "cat"], "same classes in a different order", ["*"], False),
        (["bus", "cat", "dog"], "all classes and 1 more", ["*"], False),
        (["cat", "bus"], r"lacks 1 of the 2 classes \(dog\)", ["*"], False),
        (["Cat", "D og"], "same classes, 2 of them under different names", ["cat=Cat", "dog=D og"], False),
        (["Dog", "cat"], "same classes in a different order, 1 of them under different names", ["*", "dog=Dog"], False),
        (["cat", "DOG"], "1 of them under different names", ["*", "dog=DOG"], False),
        (["cats", "bus"], "none of the classes.*'cat': Did you mean 'cats'", [], False),
    ],
)
def test_the_teachers_classes(teacher, verdict, suggestion, fits):
    comparison = compare_classes(["cat", "dog"], teacher)
    assert re.search(verdict, comparison.verdict)
    assert (comparison.suggestion, comparison.fits) == (suggestion, fits)
