"""Pseudo labels by hand: which stored detections become ground truth, and where they are on the augmented image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

from kd_det.common.errors import SetupError
from kd_det.common.setting_checks import class_value
from kd_det.config import load_config
from kd_det.data.image_sets import without_labels
from kd_det.data.knowledge import DETECTION, GROUND_TRUTH, PROPOSAL, StoredImage, open_knowledge
from kd_det.data.mapper import NamingDatasetMapper
from kd_det.data.pseudo_labels import UnlabeledDatasetMapper, class_thresholds, stored_pseudo_labels
from tests.data.test_stored import AUGMENTED as LARGE_CROPS
from tests.knowledge import CLASSES, write_knowledge

AUGMENTED = [*LARGE_CROPS, "INPUT.CROP.SIZE", [0.5, 0.4]]  # which cut boxes away
# kind, box, probabilities of cat, dog, owl and the background
FOUND = [
    (GROUND_TRUTH, [0, 0, 40, 20], [0.97, 0.01, 0.01, 0.01]),
    (DETECTION, [4, 2, 14, 12], [0.91, 0.03, 0.03, 0.03]),
    (DETECTION, [4, 2, 14, 13], [0.85, 0.05, 0.05, 0.05]),  # the same object, detected as a dog too
    (DETECTION, [5, 2, 15, 12], [0.05, 0.75, 0.05, 0.15]),  # a dog at the same place
    (DETECTION, [30, 10, 38, 18], [0.72, 0.02, 0.02, 0.24]),  # another cat, not that sure
    (DETECTION, [20, 1, 28, 9], [0.1, 0.1, 0.4, 0.4]),  # an owl
    (PROPOSAL, [1, 1, 9, 19], [0.01, 0.97, 0.01, 0.01]),
]


def image_of(rows) -> StoredImage:
    kinds, boxes, probabilities = zip(*rows, strict=True) if rows else ((), (), ())
    return StoredImage(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(probabilities).reshape(-1, 4).log(),
        torch.tensor(kinds, dtype=torch.uint8),
    )


@pytest.mark.parametrize(
    ("thresholds", "rows"),
    [
        ([0.7, 0.7, 0.7], [1, 3, 4]),
        ([0.8, 0.7, 0.7], [1, 3]),
        ([0.8, 0.76, 0.3], [1, 5]),
        ([0.0, 0.0, 0.0], [1, 3, 4, 5]),
        ([0.99, 0.99, 0.99], []),
    ],
)
def test_detections_above_the_threshold_of_their_class(thresholds, rows):
    boxes, classes = stored_pseudo_labels(image_of(FOUND), torch.tensor(thresholds), 0.5)
    assert boxes.tolist() == [FOUND[row][1] for row in rows]
    assert classes.tolist() == [int(np.argmax(FOUND[row][2])) for row in rows] and classes.dtype == torch.int64


def test_the_threshold_itself_is_not_above_it():
    image = image_of([(DETECTION, [0, 0, 9, 9], [0.75, 0.125, 0.0625, 0.0625])])
    score = image.logits[:, :3].exp().max()
    assert len(stored_pseudo_labels(image, score.repeat(3), 0.5)[0]) == 0
    assert len(stored_pseudo_labels(image, score.repeat(3) - 1e-6, 0.5)[0]) == 1


@pytest.mark.parametrize("rows", [[], [FOUND[0], FOUND[-1]]])
def test_images_without_detections(rows):
    boxes, classes = stored_pseudo_labels(image_of(rows), torch.zeros(3), 0.5)
    assert boxes.shape == (0, 4) and classes.shape == (0,)


class TestMapper:
    """``UnlabeledDatasetMapper``, on an image of 20 x 40 pixels."""

    def made(self, folder, rows, *overrides):
        path = folder / "image.png"
        Image.fromarray(np.zeros((20, 40, 3), dtype=np.uint8)).save(path)
        record = {"file_name": str(path), "image_id": 1, "height": 20, "width": 40}
        written = write_knowledge(folder / "knowledge", {"set": [record]}, lambda _: image_of(rows))
        cfg = load_config("", list(overrides))
        knowledge = open_knowledge(written, "KD.TEACHER.STORED")
        return record, UnlabeledDatasetMapper(cfg, knowledge, torch.tensor([0.8, 0.7, 0.3]))

    def test_they_are_moved_as_ground_truth_is(self, tmp_path):
        record, mapper = self.made(tmp_path, FOUND, *AUGMENTED)
        boxes, classes = stored_pseudo_labels(image_of(FOUND), mapper.thresholds, 0.5)
        objects = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": number, "iscrowd": 0}
            for box, number in zip(boxes.tolist(), classes.tolist(), strict=True)
        ]
        labeled = NamingDatasetMapper(load_config("", AUGMENTED), is_train=True)
        counts = set()
        for seed in range(20):
            seed_all_rng(seed)
            item = mapper({**record, "knowledge": 0})
            seed_all_rng(seed)
            expected = labeled({**record, "annotations": objects})["instances"]
            assert torch.equal(item["instances"].gt_boxes.tensor, expected.gt_boxes.tensor)
            assert torch.equal(item["instances"].gt_classes, expected.gt_classes)
            assert item["instances"].image_size == expected.image_size == tuple(item["image"].shape[1:])
            counts.add(len(expected))
        assert len(counts) > 1  # some were cut away

    def test_neither_annotations_nor_stored_ground_truth_are_used(self, tmp_path):
        record, mapper = self.made(tmp_path, FOUND)
        mapper.augmentations = T.AugmentationList([T.HFlipTransform(40)])
        annotations = [{"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}]
        (unlabeled,) = without_labels([{**record, "annotations": annotations, "sem_seg_file_name": "x.png"}])
        item = mapper({**unlabeled, "knowledge": 0})
        assert item["instances"].gt_boxes.tensor.tolist() == [[26, 2, 36, 12], [25, 2, 35, 12], [12, 1, 20, 9]]
        assert item["instances"].gt_classes.tolist() == [0, 1, 2] and item["unlabeled"]
        assert len(item["stored"]) == len(FOUND) - 1
        assert [0, 0, 40, 20] not in item["stored"].proposal_boxes.tensor.tolist()

    def test_an_image_without_any_stored_box(self, tmp_path):
        record, mapper = self.made(tmp_path, [])
        item = mapper({**record, "knowledge": 0})
        assert len(item["instances"]) == len(item["stored"]) == 0
        assert item["instances"].gt_boxes.tensor.shape == (0, 4) and item["instances"].gt_classes.dtype == torch.int64


class TestThresholds:
    """``KD.UNLABELED.THRESHOLD`` and ``CLASS_THRESHOLDS``."""

    def given(self, *entries, names=CLASSES):
        settings = ["KD.UNLABELED.THRESHOLD", 0.6, "KD.UNLABELED.CLASS_THRESHOLDS", list(entries)]
        return class_thresholds(load_config("", ["MODEL.ROI_HEADS.NUM_CLASSES", 3, *settings]), names)

    def test_one_for_each_class(self):
        assert torch.equal(self.given(), torch.tensor([0.6, 0.6, 0.6]))
        assert torch.equal(self.given("owl = 0.9", "cat=0"), torch.tensor([0.0, 0.6, 0.9]))
        assert torch.equal(self.given("a=b=0.25", names=("x", "a=b", "y")), torch.tensor([0.6, 0.25, 0.6]))
        assert torch.equal(self.given("2=0.5", names=None), torch.tensor([0.6, 0.6, 0.5]))

    def test_unknown_and_repeated_classes_are_refused(self):
        with pytest.raises(SetupError, match=r"CLASS_THRESHOLDS: the student has no class 'owls'. Did you mean 'owl'"):
            self.given("owls=0.5")
        with pytest.raises(SetupError, match="'cat' is listed twice"):
            self.given("cat=0.5", "cat=0.6")

    @pytest.mark.parametrize("entry", ["cat", "=0.5", "cat=", "cat=high", "cat=1", "cat=-0.1", "cat=nan", 0.5])
    def test_malformed_entries(self, entry):
        with pytest.raises(SetupError, match=r'KEY: .* is not a class and a threshold.*write "class=0.7"'):
            class_value("KEY", entry)
