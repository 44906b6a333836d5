from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.data.coco_json import register_coco_json
from kd_det.data.proposals import check_proposals


def proposals() -> dict:
    boxes = np.float32([[0, 0, 5, 5], [1, 1, 9, 9]])
    return {"ids": [1, 2], "boxes": [boxes, boxes[:1]], "objectness_logits": [np.float32([2, 1]), np.float32([3])]}


@pytest.fixture
def data_set(tmp_path):
    content = {
        "images": [{"id": number, "file_name": f"{number}.png", "height": 9, "width": 9} for number in (1, 2)],
        "annotations": [], "categories": [{"id": 1, "name": "thing"}],
    }  # fmt: skip
    (tmp_path / "set.json").write_text(json.dumps(content))
    register_coco_json([["with_proposals", str(tmp_path / "set.json"), str(tmp_path)]])
    yield "with_proposals"
    DatasetCatalog.remove("with_proposals")
    MetadataCatalog.remove("with_proposals")


def check(tmp_path, data_set, content: object) -> None:
    path = tmp_path / "proposals.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    keys = ["MODEL.LOAD_PROPOSALS", True, "DATASETS.TRAIN", (data_set,), "DATASETS.PROPOSAL_FILES_TRAIN", (str(path),)]
    check_proposals(load_config("", keys), ("TRAIN",))


def test_proposals_under_both_names(tmp_path, data_set):
    check(tmp_path, data_set, proposals())
    old = proposals()
    check(tmp_path, data_set, {"indexes": old["ids"], "boxes": old["boxes"], "scores": old["objectness_logits"]})


class Exploit:
    def __reduce__(self):
        return (print, ("this would run the file's code",))


@pytest.mark.parametrize(
    "content, named",
    [
        (b"no pickle", "cannot be read"),
        ({**proposals(), "ids": Exploit()}, "cannot be read"),
        ([1], "contains a list"),
        ({"ids": [1, 2]}, "lists ids, boxes, objectness_logits of equal length"),
        ({**proposals(), "ids": [1]}, "of equal length"),
        ({**proposals(), "boxes": [np.zeros((2, 5)), np.zeros((1, 4))]}, "entry 0 must have boxes"),
        ({**proposals(), "boxes": [np.full((2, 4), np.nan), np.zeros((1, 4))]}, "entry 0 must have boxes"),
        ({**proposals(), "boxes": [[[0], [0, 1]], np.zeros((1, 4))]}, "it has list and float32"),
        ({**proposals(), "ids": [1, 3]}, "has no proposals for 1 of the 2 images of 'with_proposals' .id 2."),
    ],
)
def test_files_that_do_not_fit(tmp_path, data_set, content, named):
    with pytest.raises(SetupError, match=rf"DATASETS.PROPOSAL_FILES_TRAIN.*{named}"):
        check(tmp_path, data_set, content)
