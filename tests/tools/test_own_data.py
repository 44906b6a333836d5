"""Training on a user's own data with the command line alone, in one process and in two."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.mini_coco import annotation_file, edit_annotations
from tests.tiny import TINY, teacher_files

NAMES = ["person", "zebra", "car"]


@pytest.fixture
def own(coco, tmp_path):
    """``--dataset`` options of a training and a validation set of three classes, made of the miniature COCO."""
    shutil.copytree(coco / "coco", tmp_path / "own" / "coco")

    def three(content):
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1 + annotation["category_id"] % 3

    options = []
    for split in ("train2017", "val2017"):
        edit_annotations(tmp_path / "own", split, three)
        files = f"{annotation_file(tmp_path / 'own', split)},{tmp_path / 'own' / 'coco' / split}"
        options += ["--dataset", f"mine_{split[:-4]}={files}"]
    return options


@pytest.fixture
def settings(tmp_path):
    """A student of three classes under a teacher of COCO's eighty, paired by name."""
    coco_teacher = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "DATASETS.TRAIN", ("coco_2017_train",)]
    teacher = teacher_files(tmp_path, *coco_teacher)
    return [
        *TINY, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
        "KD.TERMS", "('dkd',)", "KD.TEACHER.CONFIG_FILE", teacher[0], "KD.TEACHER.DTYPE", "float32",
        "KD.TEACHER.WEIGHTS", teacher[1], "DATASETS.TRAIN", "('mine_train',)", "DATASETS.TEST", "('mine_val',)",
        "SOLVER.BASE_LR", 1e-6, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", "(96,)",
        "INPUT.MIN_SIZE_TEST", 96, "VIS_PERIOD", 1,
        # The maps of a random frozen network are large, and a saturated softmax finds nothing at all.
        "SEED", 1, "MODEL.PIXEL_STD", "[5700.0, 5700.0, 5700.0]",
    ]  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2])
def test_trains_and_evaluates(train_net, own, settings, tmp_path, processes):
    mapped = ["KD.TEACHER.CLASS_MAP", "['*']", "DATALOADER.NUM_WORKERS", 2 - processes]
    result = train_net(*own, "--num-gpus", processes, *settings, *mapped)
    assert result.returncode == 0, result.stderr[-3000:]
    out = tmp_path / "output"
    logged = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert {"bbox/AP-person", "bbox/AP-zebra", "bbox/AP-car", "loss_dkd"} <= {name for line in logged for name in line}
    assert "mine_train" in (out / "config.yaml").read_text()  # what was trained on is on record
    assert list(out.glob("events.out.tfevents*"))


def test_other_classes_without_a_map(train_net, own, settings):
    result = train_net(*own, *settings)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and "NUM_CLASSES is 3 for the student and 80 for the teacher" in line
    assert "KD.TEACHER.CLASS_MAP" in line


def test_an_option_of_another_form(train_net):
    result = train_net("--dataset", "mine=train.json", *TINY)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: --dataset 'mine=train.json' does not have the form")
