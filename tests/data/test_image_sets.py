"""Data sets of images without annotations, and what is refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from kd_det.common.errors import SetupError
from kd_det.common.images import EXIF_ORIENTATION, TURNS, UnreadableImageError, image_size, read_image
from kd_det.config import load_config
from kd_det.data.checks import check_datasets, check_unlabeled
from kd_det.data.coco_json import parse_option, register_coco_json, use_datasets
from tests.data.own_coco import own_coco, write_own_coco

pytestmark = pytest.mark.usefixtures("catalogue")


def save(path, width, height, **settings):
    path.parent.mkdir(exist_ok=True, parents=True)
    pixels = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) % 256
    Image.fromarray(pixels.astype(np.uint8)).save(path, **settings)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them in a sub-folder, and another file."""
    for name, size in (("b.png", (30, 20)), ("a.JPG", (16, 24)), ("more/a.jpg", (10, 12))):
        save(tmp_path / "photos" / name, *size)
    (tmp_path / "photos" / "notes.txt").write_text("none of them has labels")
    return tmp_path / "photos"


RECORDS = [("a.JPG", 24, 16), ("b.png", 20, 30), ("more/a.jpg", 12, 10)]


def found(name):
    return [(record["image_id"], record["height"], record["width"]) for record in DatasetCatalog.get(name)]


def test_a_folder_is_a_set(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert parse_option("more=photos/") == ["more", "photos/"]
    use_datasets(load_config("", ["DATASETS.COCO_JSON", [["more", "photos/"]]]), ["again=photos/"])
    register_coco_json([["more", str(folder) + "/"]])  # the same set once more
    assert found("more") == found("again") == RECORDS
    assert all(record["file_name"] == str(folder / record["image_id"]) for record in DatasetCatalog.get("more"))
    assert not any("annotations" in record for record in DatasetCatalog.get("more"))
    with pytest.raises(SetupError, match="there is already a data set 'more'"):
        register_coco_json([["more", str(folder / "more") + "/"]])


@pytest.mark.parametrize("orientation", [1, *TURNS])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_sizes_are_those_of_the_decoded_image(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = str(save(tmp_path / f"image.{suffix}", 12, 8, exif=exif))
    assert image_size(path) == read_image(path, upright=True).size[::-1]


@pytest.mark.parametrize("others", [{}, {"categories": [{"id": 1, "name": "cat"}], "info": {}}])
def test_a_json_of_images_alone_is_a_set(folder, tmp_path, others):
    images = [{"id": 7, "file_name": "b.png", "height": 20, "width": 30, "coco_url": "there"}]
    images.append({"id": 3, "file_name": "more/a.jpg", "height": 12, "width": 10})
    (tmp_path / "info.json").write_text(json.dumps({"images": images, **others}))
    register_coco_json([["more", str(tmp_path / "info.json"), str(folder)]])
    assert found("more") == [(3, 12, 10), (7, 20, 30)]
    assert DatasetCatalog.get("more")[0]["file_name"] == str(folder / "more/a.jpg")


def settings(*overrides):
    sets = ["DATASETS.TRAIN", ("labeled",), "DATASETS.TEST", (), "MODEL.ROI_HEADS.NUM_CLASSES", 3]
    return load_config("", [*sets, *overrides])


@pytest.fixture
def labeled(tmp_path):
    files = write_own_coco(tmp_path / "labeled", own_coco())
    register_coco_json([["labeled", *files]])
    return files


def test_a_set_without_annotations_cannot_be_trained_on_with_labels(folder, labeled):
    register_coco_json([["more", str(folder) + "/"]])
    check_unlabeled(settings("DATASETS.UNLABELED", ("more",)))
    for split in ("TRAIN", "TEST"):
        with pytest.raises(SetupError, match=f"DATASETS.{split}: 'more' has no annotations; only DATASETS.UNLABELED"):
            check_datasets(settings(f"DATASETS.{split}", ("labeled", "more")))


def test_annotations_of_an_unlabeled_set_are_warned_of(labeled, caplog):
    register_coco_json([["other", *labeled]])
    with caplog.at_level(logging.INFO, "kd_det"):
        check_unlabeled(settings("DATASETS.UNLABELED", ("other",)))
    assert "DATASETS.UNLABELED: 6 images of 'other' have annotations, which are ignored" in caplog.text


def test_bad_sets(folder, labeled, tmp_path):
    with pytest.raises(SetupError, match=r"DATASETS.UNLABELED: there is no data set 'nowhere'"):
        check_unlabeled(settings("DATASETS.UNLABELED", ("nowhere",)))
    with pytest.raises(SetupError, match=r"DATASETS.COCO_JSON 'more': there is no image folder '.*absent'"):
        register_coco_json([["more", str(tmp_path / "absent") + "/"]])
    (tmp_path / "empty").mkdir()
    register_coco_json([["empty", str(tmp_path / "empty") + "/"]])
    with pytest.raises(SetupError, match=r"'empty': the folder '.*empty' has no image \(.jpg,"):
        check_unlabeled(settings("DATASETS.UNLABELED", ("empty",)))
    (folder / "broken.png").write_bytes(b"not an image")
    register_coco_json([["more", str(folder) + "/"]])
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        check_unlabeled(settings("DATASETS.UNLABELED", ("more",)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1, "file_name": "b.png"}]}, "1 images have no height and width"),
        ({"images": [{"id": 1, "file_name": "gone.png", "height": 3, "width": 3}]}, "first image .* does not exist"),
    ],
)
def test_bad_lists_of_images(folder, labeled, tmp_path, content, message):
    (tmp_path / "info.json").write_text(json.dumps(content))
    register_coco_json([["more", str(tmp_path / "info.json"), str(folder)]])
    with pytest.raises(SetupError, match=f"'more': .*{message}"):
        check_unlabeled(settings("DATASETS.UNLABELED", ("more",)))
