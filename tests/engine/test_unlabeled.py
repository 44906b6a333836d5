"""kd-det train with unlabelled images: runs, resuming, the loader, and what is refused at start-up."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.config.training_rules import images_of_a_process
from kd_det.data.coco_json import use_datasets
from kd_det.data.knowledge import DETECTION, PROPOSAL, StoredImage
from kd_det.engine.trainer import DistillTrainer
from tests.engine.test_stored import NO_TEACHER
from tests.knowledge import write_knowledge
from tests.mini_coco import THINGS, annotation_file

MORE = ["DATASETS.UNLABELED", "('stage_val',)"]
LOGITS = torch.full((3, 81), -9.0)
LOGITS[0, 4], LOGITS[1, 7], LOGITS[:, 80] = 5.0, 1.0, 1.0  # sure of the first only


def look(record) -> StoredImage:
    """Two detections, of which the first is above the threshold, and a proposal; the corner is the image's number."""
    x = float(record["image_id"]) if not isinstance(record["image_id"], str) else 50.0
    boxes = torch.tensor([[x, 5, x + 40, 60], [30, 20, 100, 90], [0, 0, 20, 20]])
    return StoredImage(boxes, LOGITS.log_softmax(1), torch.tensor([DETECTION, DETECTION, PROPOSAL], dtype=torch.uint8))


@pytest.fixture(scope="module")
def both(stage, tmp_path_factory):
    """A folder of photographs, the stage's sets in COCO_JSON, and knowledge of all of them."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "photos").mkdir()
    for path in sorted((stage.folder / "data" / "coco" / "val2017").glob("*.jpg"))[:3]:
        shutil.copy(path, folder / "photos" / path.name)
    sets = [
        [f"stage_{split}", str(annotation_file(stage.folder / "data", f"{split}2017")),
         str(stage.folder / "data" / "coco" / f"{split}2017")] for split in ("train", "val")
    ]  # fmt: skip
    sets.append(["stage_photos", f"{folder / 'photos'}/"])
    use_datasets(load_config("", ["DATASETS.COCO_JSON", sets]))
    records = {name: DatasetCatalog.get(name) for name, *_ in sets}
    names = [thing["name"] for thing in THINGS]
    return write_knowledge(folder / "knowledge", records, look, names), sets


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "output" / "metrics.json").read_text().splitlines()]


def test_it_trains_and_resumes_from_stored_knowledge(train, both, tmp_path):
    folder, sets = both
    photos = f"--dataset=stage_photos={sets[2][1]}"
    stored = ["KD.TEACHER.STORED", folder, *NO_TEACHER, "KD.TERMS", "('dkd',)"]
    stored += ["DATASETS.UNLABELED", "('stage_photos','stage_val')", "VIS_PERIOD", 1]
    ended = train(photos, "SOLVER.MAX_ITER", 2, *stored)
    assert ended.code == 0, ended.error
    assert "Each process has 1 labelled and 1 unlabelled images in a batch" in ended.log
    assert "DATASETS.UNLABELED 'stage_photos': 3 images" in ended.log
    assert "images of 'stage_val' have annotations, which are ignored" in ended.log
    ended = train(
        photos, "--resume", "SOLVER.MAX_ITER", 3, *stored, "KD.UNLABELED.THRESHOLD", 0.5,
        "KD.UNLABELED.CLASS_THRESHOLDS", f"['{THINGS[4]['name']}=0.2']", "DATALOADER.NUM_WORKERS", 2,
    )  # fmt: skip
    assert ended.code == 0 and "Starting training from iteration 2" in ended.log, ended.error
    assert "--resume: KD.UNLABELED.THRESHOLD was 0.7 and is 0.5, from here on" in ended.log
    for line in metrics(tmp_path):
        names = {name for name in line if name.startswith("loss_")}
        parts = ("cls", "box_reg", "rpn_cls", "rpn_loc", "dkd")
        assert names == {f"loss_{part}{suffix}" for part in parts for suffix in ("", "_unlabeled")}
        assert line["loss_dkd_unlabeled"] > 0 and line["unlabeled/roi_head/num_fg_samples"] > 0
        assert line["total_loss"] == pytest.approx(sum(line[name] for name in names), rel=1e-5)
    ended = train(photos, "--resume", "SOLVER.MAX_ITER", 4, *stored, "DATASETS.UNLABELED", "('stage_val',)")
    assert ended.code == 2 and "DATASETS.UNLABELED was" in ended.error


@pytest.mark.parametrize("terms", ["()", "('dkd','fitnet')"])
def test_the_live_teachers_detections_suffice(train, tmp_path, terms):
    ended = train(*MORE, "KD.TERMS", terms, "SOLVER.MAX_ITER", 2, "DATALOADER.NUM_WORKERS", 1)
    assert ended.code == 0, ended.error
    # Detectron2 writes a line of its own for what was last logged in an earlier iteration.
    logged = {name for line in metrics(tmp_path) for name in line}
    assert {"loss_cls", "loss_cls_unlabeled", "loss_rpn_loc_unlabeled"} <= logged
    assert ("loss_fitnet_unlabeled" in logged) == ("fitnet" in terms)


@pytest.mark.parametrize("workers", [0, 3])
def test_the_loader_mixes_the_sets_and_gives_pseudo_labels(both, workers):
    folder, _ = both
    settings = [
        "DATASETS.TRAIN", ("stage_train",), "DATASETS.UNLABELED", ("stage_photos",), "KD.TEACHER.STORED", folder,
        "SOLVER.IMS_PER_BATCH", 5, "KD.UNLABELED.BATCH_FRACTION", 0.4, "DATALOADER.NUM_WORKERS", workers,
        "INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none",
    ]  # fmt: skip
    loader = iter(DistillTrainer.build_train_loader(load_config("", settings)))
    seen = set()
    for _ in range(4):
        items = next(loader)
        assert [item.get("unlabeled", False) for item in items] == [False] * 3 + [True] * 2
        assert all("train2017" in item["file_name"] and len(item["instances"]) == 3 for item in items[:3])
        for item in items[3:]:
            assert item["instances"].gt_boxes.tensor.tolist() == [[50, 5, 90, 60]]
            assert item["instances"].gt_classes.tolist() == [4] and len(item["stored"]) == 3
            seen.add(item["image_id"])
    assert len(seen) == 3  # eight draws of the three photographs


def test_classes_that_the_teacher_does_not_know_are_warned_of(both, tmp_path, caplog):
    """Knowledge of classes 4 and 7, which are all that the stored image has."""
    _, (train, *_) = both
    names, records = [thing["name"] for thing in THINGS], {"stage_train": DatasetCatalog.get("stage_train")}
    records["stage_val"] = DatasetCatalog.get("stage_val")
    folder = write_knowledge(tmp_path / "knowledge", records, look, names, shared=(4, 7))
    cfg = load_config("", [
        "DATASETS.TRAIN", (train[0],), "DATASETS.UNLABELED", ("stage_val",), "KD.TEACHER.STORED", folder,
        "DATALOADER.NUM_WORKERS", 0,
    ])  # fmt: skip
    with caplog.at_level("WARNING", "kd_det"):
        DistillTrainer.build_train_loader(cfg)
    assert f"the teacher does not know {names[0]}, {names[1]}, {names[2]}, {names[3]}, {names[5]}," in caplog.text


@pytest.mark.parametrize(
    ("images", "processes", "fraction", "expected"),
    [(16, 1, 0.5, (8, 8)), (16, 8, 0.5, (1, 1)), (16, 4, 0.3, (3, 1)), (6, 2, 0.67, (1, 2))],
)
def test_the_share_of_a_process(images, processes, fraction, expected):
    cfg = load_config("", ["SOLVER.IMS_PER_BATCH", images, "KD.UNLABELED.BATCH_FRACTION", fraction])
    assert images_of_a_process(cfg, processes) == expected


@pytest.mark.parametrize(
    ("settings", "processes", "named"),
    [
        ([2, 0.1], 1, "BATCH_FRACTION is 0.1 and each process has 2 images (SOLVER.IMS_PER_BATCH 2 / --num-gpus 1): "
         "0.1 * 2 rounds to 0 unlabelled images, which leaves 2 labelled ones. Each process needs at least one of "
         "each. Set the fraction to a value from 0.5 to 0.5."),
        ([8, 1.0], 2, "1.0 * 4 rounds to 4 unlabelled images, which leaves 0 labelled ones. Each process needs at "
         "least one of each. Set the fraction to a value from 0.25 to 0.75."),
        ([8, 0.5], 8, "has 1 images (SOLVER.IMS_PER_BATCH 8 / --num-gpus 8): 0.5 * 1 rounds to 0 unlabelled images, "
         "which leaves 1 labelled ones. Each process needs at least one of each. Set SOLVER.IMS_PER_BATCH to 16 or"),
    ],
)  # fmt: skip
def test_shares_without_a_whole_image_are_refused(settings, processes, named):
    cfg = load_config("", ["SOLVER.IMS_PER_BATCH", settings[0], "KD.UNLABELED.BATCH_FRACTION", settings[1]])
    with pytest.raises(SetupError) as raised:
        images_of_a_process(cfg, processes)
    assert named in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["DATASETS.UNLABELED", "('stage_train',)"], "names 'stage_train', which DATASETS.TRAIN names too"),
        ([*MORE, *NO_TEACHER, "KD.TERMS", "()"], "there is no teacher whose detections would be its ground truth. Set"),
        ([*MORE, "SOLVER.IMS_PER_BATCH", 1], "KD.UNLABELED.BATCH_FRACTION is 0.5 and each process has 1 images"),
        ([*MORE, "KD.UNLABELED.THRESHOLD", 1.0], "KD.UNLABELED.THRESHOLD is 1.0; it must be a number, 0 or more and"),
        ([*MORE, "KD.UNLABELED.BATCH_FRACTION", 0.0], "KD.UNLABELED.BATCH_FRACTION is 0.0; it must be a number above"),
        ([*MORE, "KD.UNLABELED.CLASS_THRESHOLDS", "['person']"], "'person' is not a class and a threshold"),
        ([*MORE, "KD.UNLABELED.CLASS_THRESHOLDS", "['persn=0.5']"], "no class 'persn'. Did you mean 'person'?"),
        (["DATASETS.UNLABELED", "('stage_vl',)"], "no data set 'stage_vl'. Did you mean 'stage_val'?"),
        ([*MORE, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
          "KD.TERMS", "()"], "DATASETS.UNLABELED is ('stage_val',), but MODEL.META_ARCHITECTURE 'GeneralizedRCNN'"),
        ([*MORE, "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "KD.TERMS", "()"], "nor take a teacher's boxes; set it"),
        ([*MORE, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True],
         "DATASETS.UNLABELED is ('stage_val',), but MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals"),
    ],
)  # fmt: skip
def test_what_is_refused(train, settings, named):
    ended = train("SOLVER.MAX_ITER", 1, *settings)
    assert ended.code == 2 and named in ended.error, ended.error


def test_knowledge_without_the_unlabeled_images_is_refused(train, knowledge):
    ended = train("SOLVER.MAX_ITER", 1, *MORE, "KD.TEACHER.STORED", knowledge, "KD.TERMS", "('dkd',)")
    assert ended.code == 2 and "has no knowledge of 8 of the 8 images of 'stage_val'" in ended.error
