"""COCO evaluation with faster-coco-eval's C++ matching, without Detectron2's compiled code."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pycocotools.mask as mask_util
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

from kd_det.data.coco_masks import has_mask, valid_polygons

logger = logging.getLogger(__name__)


class FasterCOCOEvaluator(COCOEvaluator):
    """``COCOEvaluator`` with the same results as pycocotools, several times faster, for boxes, masks and keypoints.

    Values that the evaluation needs and the JSON lacks are computed, with a warning: the area of an object, from its
    mask or else its box, and its number of visible keypoints.

    Args:
        dataset_name: a registered data set with a COCO JSON, or one that Detectron2 can convert to COCO format.
        output_dir: folder for the predictions; None: they are not written, and the data set must have a JSON.
        kwargs: as ``COCOEvaluator``, except ``use_fast_impl``.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(dataset_name, output_dir=output_dir, use_fast_impl=False, **kwargs)
        _complete(self._coco_api, dataset_name)

    def _eval_predictions(self, *args: Any, **kwargs: Any) -> None:
        with _faster_coco_eval():
            super()._eval_predictions(*args, **kwargs)


class _Evaluation(COCOeval_faster):
    """``COCOeval_faster`` on data that pycocotools has read.

    It works on copies with ids from 1 on, in the same order, because it takes neither pycocotools' index nor text as
    ids, and an id of 0 means "not matched" to it.
    """

    def __init__(self, truth: COCO, found: COCO, kind: str) -> None:
        super().__init__(iouType=kind)
        self.params.imgIds, self.params.catIds = sorted(truth.getImgIds()), sorted(truth.getCatIds())
        self._given = truth, found

    def evaluate(self) -> None:
        images, categories = (_numbers(ids) for ids in (self.params.imgIds, self.params.catIds))
        self.cocoGt, self.cocoDt = (_numbered(coco, images, categories) for coco in self._given)
        self.params.imgIds, self.params.catIds = list(images.values()), list(categories.values())
        super().evaluate()


def _numbers(ids: Iterable[Any]) -> dict[Any, int]:
    return {each: number for number, each in enumerate(sorted(set(ids)), 1)}


def _numbered(coco: COCO, images: dict[Any, int], categories: dict[Any, int]) -> FasterCOCO:
    kept = (i for i in coco.dataset["annotations"] if i["image_id"] in images and i["category_id"] in categories)
    numbered = FasterCOCO()
    numbered.dataset = {
        "images": [{**coco.imgs[each], "id": number} for each, number in images.items()],
        "categories": [{"id": number} for number in categories.values()],
        "annotations": [
            {**item, "id": number, "image_id": images[item["image_id"]], "category_id": categories[item["category_id"]]}
            for number, item in enumerate(kept, 1)
        ],
    }
    numbered.createIndex()
    return numbered


def _complete(coco: COCO, name: str) -> None:
    """Adds the values that the evaluation needs, in place."""
    coco.dataset.pop("info", None)  # it is copied at every evaluation, and so are the categories
    coco.dataset["categories"] = [{"id": each["id"], "name": each["name"]} for each in coco.dataset["categories"]]
    for image in coco.dataset["images"]:
        image.update(height=int(image["height"]), width=int(image["width"]))  # from 3.0, say
    annotations = coco.dataset.get("annotations", [])
    for item in annotations:
        if isinstance(item.get("segmentation"), list):
            item["segmentation"] = valid_polygons(item["segmentation"])
    unsized = [item for item in annotations if item.get("area") is None]
    for item in unsized:
        item["area"] = _area(coco, item)
    if unsized:
        _say_once(f'{name}: {len(unsized)} objects have no "area"; that of their masks is used, or else of their boxes')
    _complete_keypoints(annotations, name)


def _area(coco: COCO, annotation: dict[str, Any]) -> float:
    if has_mask(annotation):
        return float(mask_util.area(coco.annToRLE(annotation)))
    return float(max(annotation["bbox"][2], 0) * max(annotation["bbox"][3], 0))


def _complete_keypoints(annotations: list[dict[str, Any]], name: str) -> None:
    posed = [item["keypoints"] for item in annotations if item.get("keypoints")]
    if not posed:
        return
    for item in annotations:
        if not item.get("keypoints"):  # of a crowd
            item["keypoints"] = [0] * len(posed[0])
    uncounted = [item for item in annotations if item.get("num_keypoints") is None]
    for item in uncounted:
        item["num_keypoints"] = sum(visibility > 0 for visibility in item["keypoints"][2::3])
    if uncounted:
        _say_once(f'{name}: {len(uncounted)} objects have no "num_keypoints"; their visible keypoints are counted')


@cache  # there may be an evaluation every few iterations
def _say_once(message: str) -> None:
    logger.warning(message)


@contextmanager
def _faster_coco_eval() -> Iterator[None]:
    # Detectron2 takes the evaluation class from its module and has no argument for it.
    original = coco_evaluation.COCOeval
    coco_evaluation.COCOeval = _Evaluation
    try:
        yield
    finally:
        coco_evaluation.COCOeval = original
