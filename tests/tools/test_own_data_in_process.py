"""The command line's own function on data of one's own, in this process: mask and keypoint models from training to AP,
what is refused before training, and images that cannot be read in it."""

from __future__ import annotations

import json
import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from PIL import Image

from kd_det.data.coco_json import add_dataset_option
from kd_det.engine import DistillTrainer, run
from tests.data.own_coco import own_coco, write_own_coco
from tests.tiny import TINY, teacher_files

KEYPOINT_HEAD = [
    "MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,), "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 3,
    "TEST.KEYPOINT_OKS_SIGMAS", [0.5, 0.5, 0.5],
]  # fmt: skip
MASK_HEAD = ["MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask"]


@pytest.fixture(autouse=True)
def catalogue():
    yield
    for name in {"mine_train", "mine_val"} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """``train(*overrides, edit=..., edit_val=...)`` is the command line's own function, in this process."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def start(*overrides, edit=lambda content: None, edit_val=lambda content: None):
        options = []
        for split, change in (("train", edit), ("val", edit_val)):
            content = own_coco()
            change(content)
            options += ["--dataset", f"mine_{split}=" + ",".join(write_own_coco(tmp_path / split, content))]
        parser = default_argument_parser()
        add_dataset_option(parser)
        settings = [
            *TINY, "OUTPUT_DIR", tmp_path / "output", "DATASETS.TRAIN", ("mine_train",), "DATASETS.TEST", ("mine_val",),
            "SOLVER.BASE_LR", 1e-6, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0,
            "INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96, "SEED", 1,
            # The maps of a random frozen network are large, and a saturated softmax finds nothing at all.
            "MODEL.PIXEL_STD", [5700.0, 5700.0, 5700.0],
        ]  # fmt: skip
        return run(parser.parse_args([*options, *map(str, [*settings, *overrides])]))

    return start


@pytest.mark.parametrize(
    ("head", "task"), [([], "bbox"), (MASK_HEAD, "segm"), (KEYPOINT_HEAD, "keypoints")], ids=["box", "mask", "keypoint"]
)
def test_from_training_to_ap(train, tmp_path, head, task):
    teacher = teacher_files(tmp_path, *head[:2], *(head[4:6] if task == "keypoints" else []))
    distilling = [
        "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads", "KD.TERMS", "('dkd',)",
        "KD.TEACHER.CONFIG_FILE", teacher[0], "KD.TEACHER.WEIGHTS", teacher[1],
        "KD.TEACHER.DTYPE", "float32",
    ]  # fmt: skip
    results = train(*distilling, *head)
    assert results.keys() == {"bbox", task}
    assert 0 <= results[task]["AP"] <= 100 and 0 <= results[task]["AP-ant"] <= 100
    logged = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()]
    losses = {"bbox": "loss_dkd", "segm": "loss_mask", "keypoints": "loss_keypoint"}
    assert math.isfinite(logged[0][losses[task]])


def remove(key):
    def edit(content):
        del content["annotations"][0][key]

    return edit


def crowds(content):
    for item in content["annotations"]:
        item["iscrowd"] = 1


def unseen(content):
    for item in content["annotations"]:
        item["keypoints"][2::3] = [0, 0, 0]


def no_names(content):
    del content["categories"][0]["keypoints"]


def two_keypoints(content):
    content["annotations"][3]["keypoints"] = [1, 2, 2, 3, 4, 2]


def boxes_only(content):
    content["annotations"].clear()


@pytest.mark.parametrize(
    ("overrides", "edits", "expected"),
    [
        (MASK_HEAD, {"edit": remove("segmentation")}, "DATASETS.TRAIN: mine_train: 1 objects have no segmentation"),
        (MASK_HEAD, {"edit_val": remove("segmentation")}, "DATASETS.TEST: mine_val: 1 objects have no segmentation"),
        (["MODEL.MASK_ON", True], {}, "have run-length masks and INPUT.MASK_FORMAT is 'polygon'; set it to"),
        (KEYPOINT_HEAD, {"edit": remove("keypoints")}, "mine_train: 1 objects have no keypoints; MODEL.KEYPOINT_ON"),
        (KEYPOINT_HEAD, {"edit": two_keypoints}, "1 objects have 2 keypoints and MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOI"),
        (KEYPOINT_HEAD, {"edit": no_names}, "mine_train has names for 0 keypoints"),
        (KEYPOINT_HEAD, {"edit_val": boxes_only}, "mine_val has no objects; MODEL.KEYPOINT_ON must be False"),
        (KEYPOINT_HEAD[:6], {}, "mine_val: TEST.KEYPOINT_OKS_SIGMAS gives 17 sigmas"),
        (KEYPOINT_HEAD, {"edit": unseen}, "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE 1 keypoints with a visib"),
        ([], {"edit": crowds}, "DATASETS.TRAIN ('mine_train',): no image has an object to train on"),
    ],
)
def test_what_the_data_lack_is_said_at_start_up(train, capsys, overrides, edits, expected):
    with pytest.raises(SystemExit) as raised:
        train(*overrides, **edits)
    assert raised.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: DATASETS.") and expected in line


def test_faults_of_the_json_are_listed_at_start_up(train, capsys):
    def damage(content):
        content["annotations"][1]["bbox"] = [float("nan"), 1, 2, 3]
        content["annotations"][4]["bbox"][3] = 1e308
        content["images"][2]["id"] = [3]

    with pytest.raises(SystemExit) as raised:
        train(edit=damage)
    assert raised.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: DATASETS.TRAIN 'mine_train': ") and "1 images have no id" in line
    assert "2 annotations have no bbox of four numbers within ±100000 (annotations[1]: [nan, 1, 2, 3]; annot" in line


def half_an_image(folder):
    path = folder / "train" / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:3000])
    return ["error: cannot read the image '", "train/images/2.png': image file is truncated", "Replace or remove it."]


def another_size(folder):
    Image.new("RGB", (20, 30)).save(folder / "train" / "images" / "2.png")
    return ["train/images/2.png' is 20x30, its annotations say 128x96. kd-det check-data --sizes lists all such."]


def a_missing_test_image(folder):
    (folder / "val" / "images" / "5.png").unlink()
    return ["val/images/5.png': there is no such file"]


@pytest.mark.parametrize(
    ("damage", "workers"), [(half_an_image, 0), (half_an_image, 1), (another_size, 1), (a_missing_test_image, 1)]
)
def test_an_image_that_cannot_be_read_is_named_in_one_line(train, tmp_path, monkeypatch, capsys, damage, workers):
    expected = []
    monkeypatch.setattr(DistillTrainer, "train", after(DistillTrainer.train, lambda: expected.extend(damage(tmp_path))))
    with pytest.raises(SystemExit) as raised:
        train("DATALOADER.NUM_WORKERS", workers, "SOLVER.MAX_ITER", 4)
    assert raised.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(part in line for part in expected), line


def after(method, act):
    """``method`` that calls ``act`` first: the start-up's checks are over."""

    def wrapped(self):
        act()
        return method(self)

    return wrapped
