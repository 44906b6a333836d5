"""The evaluation gives pycocotools' numbers for boxes, masks and keypoints, and completes what a JSON lacks."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from kd_det.engine.evaluation import FasterCOCOEvaluator
from tests.data.own_coco import KEYPOINTS, SIZE, own_coco

SIGMAS = [0.05, 0.1, 0.08]
pytestmark = pytest.mark.usefixtures("catalogue")


@pytest.fixture
def register(tmp_path):
    def write(content, name="mine"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        ids = sorted(category["id"] for category in content["categories"])
        mapped = {number: index for index, number in enumerate(ids)}
        metadata = {"thing_classes": list("abc")[: len(ids)], "thing_dataset_id_to_contiguous_id": mapped}
        register_coco_instances(name, metadata, str(tmp_path / f"{name}.json"), str(tmp_path))
        return name

    return write


def detections(content, seed=3):
    """Inputs and outputs of a detector that finds the objects, slightly displaced, and some that do not exist."""
    rng = np.random.default_rng(seed)
    classes = sorted(category["id"] for category in content["categories"])
    for image in content["images"]:
        objects = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        noise = rng.normal(0, 3, (len(objects) + 2, 4))
        boxes = np.array([item["bbox"] for item in objects] + [[5, 5, 30, 30], [40, 40, 20, 9]]) + noise
        boxes[:, 2:] = boxes[:, :2] + np.abs(boxes[:, 2:])
        found = Instances(SIZE, pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
        found.scores = torch.tensor(rng.uniform(size=len(boxes)).round(1))  # with ties
        found.pred_classes = torch.tensor([classes.index(item["category_id"]) for item in objects] + [0, 2])
        masks = np.zeros((len(boxes), *SIZE), dtype=bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.clip(0).astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        found.pred_masks = torch.from_numpy(masks)
        shown = [np.array(item["keypoints"]).reshape(-1, 3) for item in objects] + [rng.uniform(5, 60, (3, 3))] * 2
        found.pred_keypoints = torch.tensor(np.array(shown) + rng.normal(0, 2, (len(boxes), len(KEYPOINTS), 3)))
        yield {"image_id": image["id"]}, {"instances": found}


def evaluated(evaluator, content):
    evaluator.reset()
    for seen, found in detections(content):
        evaluator.process([seen], [found])
    return evaluator.evaluate()


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys() == {"bbox", "segm", "keypoints"}
    for task in theirs:
        assert ours[task].keys() == theirs[task].keys()
        for metric in theirs[task]:
            np.testing.assert_allclose(ours[task][metric], theirs[task][metric], rtol=1e-9, err_msg=f"{task} {metric}")


def completed(content):
    """With the areas and visible keypoints that COCO's own files have, worked out with pycocotools."""
    coco = COCO()
    coco.dataset = copy.deepcopy(content)
    coco.createIndex()
    for item in content["annotations"]:
        item["area"] = float(coco.annToMask(item).sum())
        item["num_keypoints"] = sum(visibility > 0 for visibility in item["keypoints"][2::3])
    return content


def test_the_numbers_are_pycocotools(register):
    content = completed(own_coco())
    name = register(content)
    options = {"distributed": False, "kpt_oks_sigmas": SIGMAS}
    theirs = evaluated(COCOEvaluator(name, use_fast_impl=False, **options), content)
    assert_same(evaluated(FasterCOCOEvaluator(name, **options), content), theirs)
    assert all(0 < theirs[task]["AP"] < 100 for task in theirs) and np.isnan(theirs["segm"]["AP-c"])


@pytest.mark.parametrize("kind", ["text", "floats", "from 0"])
def test_ids_of_any_kind(register, kind):
    """Annotations from 0 are matched too, which pycocotools fails to do."""
    change = {"text": "n{:04d}".format, "floats": float, "from 0": lambda number: number - 1}[kind]
    plain = completed(own_coco())
    other = copy.deepcopy(plain)
    for item in (*other["images"], *other["annotations"], *other["categories"]):
        item.update({key: change(value) for key, value in item.items() if key in ("id", "image_id", "category_id")})
    options = {"distributed": False, "kpt_oks_sigmas": SIGMAS}
    expected, found = (
        evaluated(FasterCOCOEvaluator(register(content, name), **options), content)
        for name, content in (("plain", plain), ("other", other))
    )
    assert_same(found, expected)


def test_what_a_json_lacks_is_worked_out_and_said(register, caplog):
    content = own_coco()
    options = {"distributed": False, "kpt_oks_sigmas": SIGMAS}
    name = register(content, "bare")
    evaluator = FasterCOCOEvaluator(name, **options)
    assert 'bare: 30 objects have no "area"' in caplog.text and '30 objects have no "num_keypoints"' in caplog.text
    caplog.clear()
    FasterCOCOEvaluator(name, **options)
    assert not caplog.text
    whole = completed(copy.deepcopy(content))
    expected = evaluated(FasterCOCOEvaluator(register(whole, "whole"), **options), whole)
    assert_same(evaluated(evaluator, content), expected)


def test_the_area_without_a_mask_is_the_boxs(register):
    content = own_coco(images=1, objects=2)
    content["annotations"][0].update(bbox=[0, 0, 100, 96], segmentation=[[1, 2, 3, 4]])
    content["annotations"][1].update(bbox=[0, 0, 40, 40])
    del content["annotations"][1]["segmentation"]
    evaluator = FasterCOCOEvaluator(register(content), distributed=False)
    assert [item["area"] for item in evaluator._coco_api.dataset["annotations"]] == [9600, 1600]


@pytest.mark.parametrize("annotations", [0, 1])
def test_nothing_to_find_and_nothing_found(register, annotations):
    content = own_coco(images=1, objects=annotations)
    name = register(content)
    evaluator = FasterCOCOEvaluator(name, distributed=False, tasks=("bbox", "segm"))
    assert np.isfinite(evaluated(evaluator, content)["bbox"]["AP"]) == bool(annotations)
    evaluator.reset()
    empty = Instances(SIZE, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0), pred_classes=torch.zeros(0))
    evaluator.process([{"image_id": 1}], [{"instances": empty}])
    assert np.isnan(evaluator.evaluate()["bbox"]["AP"])
