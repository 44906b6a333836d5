"""Stored boxes in the training data: the ground truth's augmentations, and each record's own boxes."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.data.knowledge import StoredImage, open_knowledge
from kd_det.data.mapper import NamingDatasetMapper
from kd_det.data.stored import StoredDatasetMapper, stored_records
from kd_det.engine.trainer import DistillTrainer
from tests.data.own_coco import own_coco, write_own_coco
from tests.knowledge import stored_image, write_knowledge

CLASSES = ("ant", "bee", "cow")


def made(folder, boxes, size=(20, 40), objects=None):
    """An image of this height and width, its record, and its stored boxes; the opened knowledge."""
    folder.mkdir(exist_ok=True)
    path = folder / "image.png"
    Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(path)
    record = {"file_name": str(path), "image_id": 1, "height": size[0], "width": size[1], "knowledge": 0}
    if objects is not None:
        record["annotations"] = [
            {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0} for box in objects
        ]
    folder = write_knowledge(folder / "knowledge", {"set": [record]}, lambda _: stored_image(torch.tensor(boxes)))
    return record, open_knowledge(folder, "KD.TEACHER.STORED")


def mapped(record, knowledge, *transforms, overrides=()):
    mapper = StoredDatasetMapper(load_config("", overrides), knowledge)
    if transforms:
        mapper.augmentations = T.AugmentationList(list(transforms))
    return mapper(record)


BOXES = [[4.0, 2.0, 14.0, 12.0], [30.0, 10.0, 38.0, 18.0]]


@pytest.mark.parametrize(
    "transforms, expected",
    [
        ([T.ResizeTransform(20, 40, 40, 80)], [[8, 4, 28, 24], [60, 20, 76, 36]]),
        ([T.HFlipTransform(40)], [[26, 2, 36, 12], [2, 10, 10, 18]]),
        ([T.VFlipTransform(20)], [[4, 8, 14, 18], [30, 2, 38, 10]]),
        # x from 10 to 34, y from 5 to 20: the first keeps its lower right corner, the second loses 4 columns.
        ([T.CropTransform(10, 5, 24, 15)], [[0, 0, 4, 7], [20, 5, 24, 13]]),
        # x from 20 on, then twice as large, then flipped: the first is cut away.
        ([T.CropTransform(20, 0, 20, 20), T.ResizeTransform(20, 20, 40, 40), T.HFlipTransform(40)], [[4, 20, 20, 36]]),
        ([T.CropTransform(14, 0, 16, 20)], []),  # they touch its edges
    ],
)
def test_boxes_by_hand(tmp_path, transforms, expected):
    record, knowledge = made(tmp_path, BOXES)
    stored = mapped(record, knowledge, *transforms)["stored"]
    assert stored.proposal_boxes.tensor.tolist() == expected
    given = knowledge.image(0).logits[[list(BOXES).index(box) for box in BOXES][2 - len(expected) :]]
    assert torch.equal(stored.stored_logits, given)
    probabilities = given.double().exp()
    odds = probabilities[:, :3].sum(1) / probabilities[:, 3]
    torch.testing.assert_close(stored.objectness_logits.double(), odds.log())


AUGMENTED = [
    "INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.6, 0.7], "INPUT.MIN_SIZE_TRAIN", (30, 50, 64),
    "INPUT.MAX_SIZE_TRAIN", 90,
]  # fmt: skip


def test_they_are_the_ground_truths_boxes_after_every_augmentation(tmp_path):
    boxes = [*BOXES, [0.0, 0.0, 39.5, 19.25], [16.5, 3.0, 17.0, 3.5]]
    record, knowledge = made(tmp_path, boxes, objects=boxes)
    mapper = StoredDatasetMapper(load_config("", AUGMENTED), knowledge)
    counts = set()
    for seed in range(30):
        seed_all_rng(seed)
        item = mapper(record)
        assert item["stored"].image_size == item["instances"].image_size == tuple(item["image"].shape[1:])
        assert torch.equal(item["stored"].proposal_boxes.tensor, item["instances"].gt_boxes.tensor)
        counts.add(len(item["stored"]))
    assert len(counts) > 1  # some were cut away


def test_they_cover_the_same_pixels(tmp_path):
    record, knowledge = made(tmp_path, BOXES[:1], size=(60, 80))
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[2:12, 4:14] = 255
    Image.fromarray(pixels).save(record["file_name"])
    mapper = StoredDatasetMapper(load_config("", [*AUGMENTED, "INPUT.CROP.SIZE", [0.9, 0.9]]), knowledge)
    compared = 0
    for seed in range(20):
        seed_all_rng(seed)
        item = mapper(record)
        rows, columns = np.nonzero(item["image"][0].numpy() > 127)
        if len(rows) > 20 and len(item["stored"]):
            drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(item["stored"].proposal_boxes.tensor[0].numpy() - drawn).max() <= 1
            compared += 1
    assert compared > 10


def test_images_without_annotations_have_them_too(tmp_path):
    record, knowledge = made(tmp_path, BOXES)
    item = mapped(record, knowledge, T.HFlipTransform(40))
    assert "instances" not in item and len(item["stored"]) == 2 and record["knowledge"] == 0


def test_the_rest_of_an_item_is_the_plain_mappers(tmp_path):
    record, knowledge = made(tmp_path, BOXES, objects=BOXES)
    cfg, items = load_config("", AUGMENTED), []
    for mapper in (NamingDatasetMapper(cfg, is_train=True), StoredDatasetMapper(cfg, knowledge)):
        seed_all_rng(3)
        items.append((mapper(record), torch.get_rng_state(), np.random.get_state()[1]))
    (theirs, *states), (ours, *ours_states) = items
    assert torch.equal(ours["image"], theirs["image"]) and ours.keys() - theirs.keys() == {"stored"}
    assert torch.equal(states[0], ours_states[0]) and np.array_equal(states[1], ours_states[1])


class TestRecords:
    """Two registered sets, whose images have the same numbers."""

    @pytest.fixture
    def sets(self, tmp_path, catalogue):
        names = {}
        for name in ("stored_a", "stored_b"):
            content = own_coco()
            content["annotations"] = [item for item in content["annotations"] if item["image_id"] != 2]
            files = write_own_coco(tmp_path / name, content)
            DatasetCatalog.register(name, partial(load_coco_json, *files, name))
            names[name] = DatasetCatalog.get(name)
        return names

    @pytest.fixture
    def image(self):
        """A box whose corner says which set and image it is of."""

        def content(record) -> StoredImage:
            x = 10.0 * record["image_id"] + (5 if "stored_b" in record["file_name"] else 0)
            return stored_image(torch.tensor([[x % 60, 1.0, x % 60 + 20, 30.0]]))

        return content

    def settings(self, folder, *overrides):
        sets = ["DATASETS.TRAIN", ("stored_a", "stored_b"), "DATALOADER.NUM_WORKERS", 0, "INPUT.RANDOM_FLIP", "none"]
        same = ["INPUT.MIN_SIZE_TRAIN", (0,), "SOLVER.IMS_PER_BATCH", 2, "MODEL.ROI_HEADS.NUM_CLASSES", 3]
        return load_config("", [*sets, *same, "KD.TEACHER.STORED", folder, *overrides])

    def test_every_record_has_the_place_of_its_image(self, tmp_path, sets, image):
        folder = write_knowledge(tmp_path / "knowledge", sets, image, CLASSES)
        knowledge = open_knowledge(folder, "KD.TEACHER.STORED")
        cfg = self.settings(folder)
        records = stored_records(cfg, knowledge)
        assert len(records) == 10  # of 12; two have no objects
        for record in records:
            assert torch.equal(knowledge.image(record["knowledge"]).boxes, image(record).boxes)

    @pytest.mark.parametrize(
        "settings, count",
        [
            ([], 10),  # of 12; two have no objects
            (["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False], 12),
            (["MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE", 9], 8),
            (["MODEL.LOAD_PROPOSALS", True], 10),
        ],
    )
    def test_they_are_detectron2s_records(self, tmp_path, sets, image, settings, count):
        for name, records in sets.items():
            content = {
                "ids": [record["image_id"] for record in records], "bbox_mode": BoxMode.XYXY_ABS.value,
                "boxes": [np.full((1, 4), record["image_id"]) for record in records],
                "objectness_logits": [np.ones(1) for _ in records],
            }  # fmt: skip
            (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
        files = tuple(str(tmp_path / f"{name}.pkl") for name in sets)
        folder = write_knowledge(tmp_path / "knowledge", sets, image, CLASSES)
        cfg = self.settings(folder, "DATASETS.PROPOSAL_FILES_TRAIN", files, *settings)
        expected = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.KEYPOINT_ON and cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE,
            proposal_files=files if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        records = stored_records(cfg, open_knowledge(folder, "KD.TEACHER.STORED"))
        for record in records:
            del record["knowledge"]
        assert len(records) == count and repr(records) == repr(expected)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_loader_gives_them(self, tmp_path, sets, image, workers):
        folder = write_knowledge(tmp_path / "knowledge", sets, image, CLASSES)
        loader = iter(DistillTrainer.build_train_loader(self.settings(folder, "DATALOADER.NUM_WORKERS", workers)))
        for _ in range(3):
            for item in next(loader):
                assert torch.equal(item["stored"].proposal_boxes.tensor, image(item).boxes)

    def test_a_missing_image_is_refused(self, tmp_path, sets, image):
        part = {**sets, "stored_b": sets["stored_b"][:1]}
        folder = write_knowledge(tmp_path / "knowledge", part, image, CLASSES)
        with pytest.raises(SetupError, match=r"KD\.TEACHER\.STORED .* no knowledge of .* of 'stored_b'.*store-teacher"):
            DistillTrainer.build_train_loader(self.settings(folder, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False))

    def test_other_images_are_refused(self, tmp_path, sets, image):
        other = [{**record, "width": 7} for record in sets["stored_a"]]
        folder = write_knowledge(tmp_path / "knowledge", {**sets, "stored_a": other}, image, CLASSES)
        with pytest.raises(SetupError, match=r"KD\.TEACHER\.STORED .* was made for other images"):
            DistillTrainer.build_train_loader(self.settings(folder))
