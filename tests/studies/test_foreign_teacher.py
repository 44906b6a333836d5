"""``kd-det study foreign``: torchvision's detector and its predictions, and what the study would run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.ops import nms

from kd_det import cli
from kd_det.config import load_config
from kd_det.data.digits_scenes import (
    DigitsDetSettings,
    annotation_file,
    image_root,
    make_digits_det,
    register_digits_det,
)
from kd_det.studies import digits_runs, foreign_teacher, torchvision_detector
from kd_det.studies.torchvision_detector import RESULT, VECTORS, WINNERS, Images, average_precision, build_detector
from tests.tools.commands import run_here

FEW = DigitsDetSettings(train_images=4, val_images=2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of data sets with 4 digits scenes for training and 2 for validation."""
    root = tmp_path_factory.mktemp("datasets")
    make_digits_det(root, FEW)
    return root


def data(root, split="train"):
    return str(annotation_file(root, split)), str(image_root(root, split))


@pytest.fixture(scope="module")
def files(scenes, tmp_path_factory):
    """What the detector's command writes after two iterations."""
    output = tmp_path_factory.mktemp("detector")
    line = ["--train", *data(scenes), "--val", *data(scenes, "val"), "--output", str(output), "--iterations", "2"]
    torchvision_detector.main(line)
    return output


def test_boxes_and_classes_are_those_of_the_annotations(scenes):
    content = json.loads(Path(data(scenes)[0]).read_text())
    images = Images(*data(scenes))
    assert images.ids == [each["id"] for each in content["images"]] and len(images.pixels) == 4
    for number, pixels, target in zip(images.ids, images.pixels, images.targets, strict=True):
        own = [each for each in content["annotations"] if each["image_id"] == number]
        corners = [[x, y, x + width, y + height] for x, y, width, height in (each["bbox"] for each in own)]
        torch.testing.assert_close(target["boxes"], torch.tensor(corners, dtype=torch.float32))
        assert [images.categories[label - 1] for label in target["labels"]] == [each["category_id"] for each in own]
        assert pixels.shape == (3, 128, 128) and 0 <= pixels.min() < pixels.max() <= 1


def test_score_vectors_are_the_detectors_own(scenes):
    """Those of its proposals are what its own head says in a detection; a larger image has its boxes in its pixels."""
    torch.manual_seed(0)
    detector = build_detector(10).eval()
    pixels = Images(*data(scenes)).pixels[0]
    said: list[torch.Tensor] = []
    detector.roi_heads.box_predictor.register_forward_hook(lambda *call: said.append(call[2][0]))
    for image in (pixels, torch.nn.functional.interpolate(pixels[None], scale_factor=2)[0]):
        said.clear()
        found, boxes, probabilities = torchvision_detector.predict(detector, image)
        count = len(found["boxes"])
        assert count > 0 and len(boxes) > count and probabilities.shape == (len(boxes), 11)
        torch.testing.assert_close(boxes[:count], found["boxes"])
        assert boxes.max() <= image.shape[1] and boxes[count:].max() > image.shape[1] / 2
        torch.testing.assert_close(probabilities[count:], said[0].softmax(1))
        torch.testing.assert_close(probabilities.sum(1), torch.ones(len(boxes)))
        # The proposals are those that the detector's own head saw: NMS has left no two that overlap.
        proposals = boxes[count:]
        assert len(nms(proposals, torch.arange(len(proposals), 0, -1.0), 0.71)) == len(proposals)


def test_the_command_writes_predictions_that_can_be_imported(files, scenes):
    winners, vectors = (json.loads((files / name).read_text()) for name in (WINNERS, VECTORS))
    result = json.loads((files / RESULT).read_text())
    assert 0 <= result["AP"] <= 100
    assert result["boxes_per_image"] == {WINNERS: len(winners) / 4, VECTORS: len(vectors) / 4}
    assert all(entry.keys() == {"image_id", "category_id", "bbox", "score"} for entry in winners)
    assert all(entry.keys() == {"image_id", "bbox", "scores"} and len(entry["scores"]) == 10 for entry in vectors)
    assert len(vectors) > len(winners)


def test_the_average_precision_of_the_truth_is_100(scenes):
    content = json.loads(Path(data(scenes, "val")[0]).read_text())
    truth = [{key: each[key] for key in ("image_id", "category_id", "bbox")} for each in content["annotations"]]
    assert average_precision(data(scenes, "val")[0], [{**each, "score": 1.0} for each in truth]) == pytest.approx(100)
    assert average_precision(data(scenes, "val")[0], []) == 0


def test_training_lowers_the_loss(scenes):
    torch.manual_seed(0)
    detector, images = build_detector(10), Images(*data(scenes))

    def loss():
        torch.manual_seed(1)  # of the sampling
        with torch.no_grad():
            return sum(detector.train()(images.pixels, images.targets).values()).item()

    before = loss()
    torchvision_detector.train(detector, images, 5, "cpu")
    assert loss() < before - 0.5


def test_a_non_finite_loss_of_the_detector_stops_the_run(scenes):
    detector, images = build_detector(10), Images(*data(scenes))
    images.pixels = [pixels * float("nan") for pixels in images.pixels]
    with pytest.raises(RuntimeError, match="non-finite loss of the detector in iteration 1: "):
        torchvision_detector.train(detector, images, 2, "cpu")


@pytest.fixture
def registered(scenes, monkeypatch):
    """``digits_det_train`` and ``digits_det_val`` are the few scenes meanwhile."""
    names = ("digits_det_train", "digits_det_val")
    before = {name: (DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in names}
    register_digits_det(scenes, settings=FEW)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    yield
    for name, (load, metadata) in before.items():
        DatasetCatalog.pop(name)
        DatasetCatalog.register(name, load)
        MetadataCatalog[name] = metadata


@pytest.fixture
def study(tmp_path, monkeypatch, registered, files):
    """``study(*arguments)`` runs the command with the imports and without the trainings; returns the trainings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kd_det.studies.foreign_teacher.make_digits_det", lambda root: None)
    row = dict.fromkeys(("AP", "AP50", "AP75", "best_AP", "memory_mib", "seconds_per_iteration"), 40.0)
    monkeypatch.setattr(foreign_teacher, "last_result", lambda folder: row)

    def run(*arguments: str):
        trained = {}

        def pretend(folder, recipe, output, command, collect, threads=None):
            folder.mkdir(parents=True, exist_ok=True)
            line = command(False)
            if line[2:4] == ["kd_det", "import-teacher"]:
                ended = run_here(*line[3:])
                assert ended.returncode == 0, ended.stderr[-2000:]
            elif line[2] == "kd_det":
                trained[folder.relative_to("output/study_foreign").as_posix()] = line[4:]
            elif folder.name == "detector":
                for name in (WINNERS, VECTORS, RESULT):
                    (folder / name).write_bytes((files / name).read_bytes())
            else:
                (folder / output).write_bytes(b"written")
            return collect()

        monkeypatch.setattr(digits_runs, "run_step", pretend)
        monkeypatch.setattr(foreign_teacher, "run_step", pretend)
        cli.main(["study", "foreign", *arguments])
        return trained

    return run


def test_the_arms_differ_in_the_predictions_alone(study):
    trained = study("--seeds", "2")
    assert set(trained) == {f"{arm}/seed{seed}" for arm in foreign_teacher.ARMS for seed in (1, 2)}
    lines = {arm: trained[f"{arm}/seed2"] for arm in foreign_teacher.ARMS}
    settings = {arm: load_config(line[1], line[2:]) for arm, line in lines.items()}
    assert [cfg.KD.TERMS for cfg in settings.values()] == [(), ("kd",), ("kd",), ("dkd",)]
    stored = [Path(cfg.KD.TEACHER.STORED).name for cfg in settings.values()]
    assert stored == ["", "knowledge_winners", "knowledge_vectors", "knowledge_vectors"]
    for cfg in settings.values():
        assert not (cfg.KD.TEACHER.CONFIG_FILE or cfg.KD.TEACHER.WEIGHTS) and cfg.SEED == 2
        assert cfg.SOLVER.MAX_ITER == 200 and Path(cfg.MODEL.WEIGHTS).parent.name == "student_warm_up"
    content = json.loads(Path("results/digits_det_foreign_teacher.json").read_text())
    assert [row["arm"] for row in content["rows"]] == list(foreign_teacher.ARMS) and content["seeds"] == [1, 2]

    # The training command of an arm, for two iterations.
    quick = ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, "MODEL.WEIGHTS", ""]
    ended = run_here("train", *lines["vectors_dkd"], *quick, "OUTPUT_DIR", "trained")
    assert ended.returncode == 0, ended.stderr[-2000:]
    metrics = [json.loads(text) for text in Path("trained/metrics.json").read_text().splitlines()]
    assert any(entry.get("loss_dkd", 0) > 0 for entry in metrics)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "longer"], "--schedule is 'longer'; it must be one of demo, long"),
        (["--teacher-iterations", "0"], "--teacher-iterations is 0; it must be a whole number, 1 or more"),
    ],
)
def test_mistakes_are_one_line(study, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        study(*arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error
