"""kd-det import-teacher: detections of any detector become a folder of knowledge."""

from __future__ import annotations

import json

import pytest
import torch

from kd_det.data.knowledge import DETECTION, FLOOR, open_knowledge
from kd_det.data.knowledge_format import shard_files
from kd_det.data.mapper import read_image
from tests.mini_coco import THINGS, annotation_file, make_mini_coco
from tests.tiny import student_config
from tests.tools.commands import error_of, run_here

NAMES = [thing["name"] for thing in THINGS]
IDS = [thing["id"] for thing in THINGS]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A data set of 3 images of 96 x 128 and a student's configuration; its live teacher does not exist."""
    folder = tmp_path_factory.mktemp("stage")
    root = make_mini_coco(folder, images=3)
    cfg = student_config(("nowhere.yaml", "nowhere.pth"), "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    cfg.DATASETS.COCO_JSON = [["mine", str(annotation_file(root, "train2017")), str(root / "coco" / "train2017")]]
    cfg.DATASETS.TRAIN = ("mine",)
    (folder / "student.yaml").write_text(cfg.dump())
    return folder


def imported(stage, tmp_path, entries, *options):
    (tmp_path / "predictions.json").write_text(json.dumps(entries))
    return run_here(
        "import-teacher", tmp_path / "predictions.json", "--config-file", stage / "student.yaml",
        "--output", tmp_path / "knowledge", *options,
    )  # fmt: skip


def opened(result, tmp_path):
    assert result.returncode == 0, result.stderr[-2000:]
    return open_knowledge(str(tmp_path / "knowledge"), "KD.TEACHER.STORED")


def entry(image: int, score: float, category: int = 1) -> dict:
    return {"image_id": image, "category_id": category, "bbox": [10, 20, 30, 40], "score": score}


def record(number: int) -> dict:
    return {"image_id": number, "file_name": f"{number:012d}.jpg", "height": 96, "width": 128}


def test_winners_alone(stage, tmp_path):
    result = imported(stage, tmp_path, [entry(1, 0.2), entry(3, 0.5), entry(1, 0.6, 90)], "--top-k", 1)
    knowledge = opened(result, tmp_path)
    assert "2 of the 3 images of mine have predictions" in result.stdout
    assert knowledge.classes == tuple(NAMES) and knowledge.shared is None
    assert knowledge.about["imported"]["file"] == "predictions.json"
    first, second, third = (knowledge.image(knowledge.place("mine", record(number))) for number in (1, 2, 3))
    assert len(second.boxes) == 0 and second.logits.shape == (0, 81)
    assert first.boxes.tolist() == [[10, 20, 40, 60]] * 2 and first.kinds.tolist() == [DETECTION] * 2
    probabilities = first.logits.softmax(1)
    torch.testing.assert_close(
        probabilities[:, [79, 0]].T, torch.tensor([[0.6, 0.01], [0.005, 0.2]]), rtol=2e-3, atol=0
    )
    torch.testing.assert_close(probabilities[0, :79], torch.full((79,), 0.005), rtol=2e-3, atol=0)
    assert third.logits.argmax().item() == 0


def test_classes_are_paired_by_name(stage, tmp_path):
    """A detector of three classes, of which one is the student's under another name and one it does not have."""
    categories = [{"id": 5, "name": "unicorn"}, {"id": 9, "name": NAMES[4]}, {"id": 7, "name": "pedestrian"}]
    (tmp_path / "theirs.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    scores = {"image_id": 1, "bbox": [0, 0, 50, 50], "scores": [0.2, 0.3, 0.1]}  # unicorn, pedestrian, class 4
    options = ["--categories", tmp_path / "theirs.json", "--dtype", "float32"]
    assert "--categories: as a teacher" in error_of(imported(stage, tmp_path, [scores], *options))
    pairs = ["--opts", "KD.TEACHER.CLASS_MAP", f"['*','{NAMES[0]}=pedestrian']"]
    knowledge = opened(imported(stage, tmp_path, [scores], *options, *pairs), tmp_path)
    image = knowledge.image(0)
    assert knowledge.shared == (0, 4)
    torch.testing.assert_close(image.logits.exp()[0, [0, 4, 80]], torch.tensor([0.3, 0.1, 0.4]) / 0.8)
    assert (image.logits[0, 5:80] == FLOOR).all()


def test_a_torchvision_detector_teaches(stage, tmp_path):
    """Its predictions, as its users write them into a result file, are imported, and a student trains from them."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=81, box_score_thresh=0.0, box_detections_per_img=20
    ).eval()
    entries, found = [], {}
    for number in (1, 2, 3):
        pixels = read_image(str(stage / "coco" / "train2017" / record(number)["file_name"]), "RGB")
        with torch.no_grad():
            (found[number],) = detector([torch.tensor(pixels).permute(2, 0, 1) / 255])
        for box, label, score in zip(
            *(found[number][key].tolist() for key in ("boxes", "labels", "scores")), strict=True
        ):
            x0, y0, x1, y1 = box
            entries.append(
                {"image_id": number, "category_id": IDS[label - 1], "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            )
    knowledge = opened(imported(stage, tmp_path, entries), tmp_path)
    for number, theirs in found.items():
        image = knowledge.image(knowledge.place("mine", record(number)))
        assert len(image.boxes) == len(theirs["boxes"]) > 0
        torch.testing.assert_close(image.boxes, theirs["boxes"], rtol=0, atol=1e-3)
        winners = image.logits.exp().gather(1, theirs["labels"].view(-1, 1) - 1).squeeze(1)
        torch.testing.assert_close(winners, theirs["scores"], rtol=1e-2, atol=1e-4)
    output = tmp_path / "output"
    trained = run_here(
        "train", "--config-file", stage / "student.yaml", "KD.TEACHER.STORED", knowledge.folder, "OUTPUT_DIR", output,
        "KD.TEACHER.CONFIG_FILE", "", "KD.TEACHER.WEIGHTS", "", "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2,
        "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (96,),
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-2000:]
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["iteration"] == 1 and metrics[-1]["loss_dkd"] > 0


def test_unlabeled_images_are_imported_too(stage, tmp_path):
    """A folder of images: their ids are their names. Ids that two sets have are refused."""
    photos = stage / "coco" / "train2017"
    more = ["--dataset", f"photos={photos}/", "--opts", "DATASETS.UNLABELED", "('photos',)"]
    entries = [entry(1, 0.5), {**entry(1, 0.9, 90), "image_id": "000000000002.jpg"}]
    result = imported(stage, tmp_path, entries, *more)
    knowledge = opened(result, tmp_path)
    assert all(f"1 of the 3 images of {name} have predictions" in result.stdout for name in ("mine", "photos"))
    counts = [len(knowledge.image(knowledge.place("mine", record(number))).boxes) for number in (1, 2, 3)]
    image = knowledge.image(knowledge.place("photos", {**record(2), "image_id": "000000000002.jpg"}))
    assert counts == [1, 0, 0] and image.logits.argmax(1).tolist() == [79]
    twice = ["--dataset", f"again={annotation_file(stage, 'train2017')},{photos}"]
    twice += ["--opts", "DATASETS.UNLABELED", "('again',)"]
    assert "an image of 'mine' and one of 'again' have the id 1" in error_of(imported(stage, tmp_path, entries, *twice))
    alone = ["--dataset", f"photos={photos}/", "--set", "photos"]
    assert "--categories is missing: 'photos' has no categories" in error_of(imported(stage, tmp_path, entries, *alone))


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ([entry(1, 2.0)] * 4, [], "json': 4 have no score from 0 to 1 (entry 0: 2.0; entry 1: 2.0; entry 2"),
        ([entry(7, 0.5)], [], "1 have an image_id that the data set does not have"),
        ([entry(1, 0.5, 12)], [], "1 have an unknown category_id (entry 0: 12)"),
        ([entry(1, 0.5)], ["--scores", "sigmod"], "--scores is 'sigmod'; it must be one of softmax, sigmoid. Did you"),
        ([entry(1, 0.5)], ["--set", "nowhere"], "--set: there is no data set 'nowhere'"),
        ([entry(1, 0.5)], ["--categories", "nowhere.json"], "--categories: there is no annotation file 'nowhere.json'"),
        ([entry(1, 0.5)], ["--opts", "DATASETS.TRAIN", "()"], "--set is missing: the configuration has 0"),
        ([entry(1, 0.5)], ["--boxes", 0], "--boxes is 0"),
    ],
)  # fmt: skip
def test_bad_requests_are_one_line(stage, tmp_path, entries, options, message):
    assert message in error_of(imported(stage, tmp_path, entries, *options))
    assert not shard_files(tmp_path / "knowledge")
