"""kd-det store-teacher: what is stored is what the teachers give, whole or not at all, however it was interrupted."""

from __future__ import annotations

import json
import os
import signal
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from PIL import Image

from kd_det.common import files as common_files
from kd_det.config import load_config, plain_config
from kd_det.data.knowledge import DETECTION, FLOOR, GROUND_TRUTH, PROPOSAL, open_knowledge
from kd_det.data.knowledge_format import INDEX, shard_files
from kd_det.data.mapper import read_image
from kd_det.teacher.frozen import load_teacher
from tests.mini_coco import THINGS, make_mini_coco
from tests.modeling.test_any_rcnn import KINDS
from tests.tiny import student_config, teacher_files
from tests.tools.commands import error_of, run_here

SIZE = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "INPUT.MIN_SIZE_TEST", 72, "INPUT.MAX_SIZE_TEST", 200]
NAMES = [thing["name"] for thing in THINGS]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A data set of 5 images, two teachers of its 80 classes, and a student's configuration."""
    folder = tmp_path_factory.mktemp("stage")
    root = make_mini_coco(folder, images=5)
    cfgs = [student_config(teacher_files(_made(folder / name), *SIZE), *SIZE) for name in ("a", "b")]
    weights = torch.load(cfgs[1].KD.TEACHER.WEIGHTS, weights_only=True)
    weights["model"] = {name: 1.1 * value for name, value in weights["model"].items()}  # another teacher
    torch.save(weights, cfgs[1].KD.TEACHER.WEIGHTS)
    for cfg, name in zip(cfgs, "ab", strict=True):
        cfg.DATASETS.COCO_JSON = [["mine", str(annotations(folder)), str(root / "coco" / "train2017")]]
        cfg.DATASETS.TRAIN = ("mine",)
        cfg.DATALOADER.NUM_WORKERS = 0
        (folder / f"{name}.yaml").write_text(cfg.dump())
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def annotations(stage: Path) -> Path:
    return stage / "coco" / "annotations" / "instances_train2017.json"


def store(stage: Path, output: Path, *options: object):
    """Runs the command; ``options`` go before the overrides."""
    return run_here(
        "store-teacher", "--config-file", stage / "a.yaml", "--output", output, "--shard-images", 2, *options
    )


def stored(stage: Path, output: Path, *options: object):
    result = store(stage, output, *options)
    assert result.returncode == 0, result.stderr[-2000:]
    opened = open_knowledge(str(output), "--output")
    images = {image["id"]: image for image in json.loads(annotations(stage).read_text())["images"]}
    return {
        number: opened.image(opened.place("mine", {**image, "image_id": number})) for number, image in images.items()
    }


def pixels_of(stage: Path, number: int) -> np.ndarray:
    return read_image(str(stage / "coco" / "train2017" / f"{number:012d}.jpg"), "BGR")


def plain_teacher(stage: Path) -> DefaultPredictor:
    """Detectron2's own way of running the first teacher."""
    cfg = plain_config(load_config(str(stage / "a" / "teacher.yaml")))
    cfg.MODEL.WEIGHTS = str(stage / "a" / "teacher.pth")
    return DefaultPredictor(cfg)


def live_logits(stage: Path, name: str, number: int, boxes: torch.Tensor, size=(72, 96), *, flip=False) -> torch.Tensor:
    """A teacher's log-probabilities on boxes of an image of 96 x 128 that is resized to ``size``."""
    teacher = load_teacher(load_config(str(stage / f"{name}.yaml"), ["DATASETS.TRAIN", [], "DATASETS.COCO_JSON", []]))
    seen = np.asarray(Image.fromarray(pixels_of(stage, number)).resize(size[::-1], Image.Resampling.BILINEAR)).copy()
    there = boxes * (size[0] / 96)
    if flip:
        seen = seen[:, ::-1].copy()
        there = torch.stack([size[1] - there[:, 2], there[:, 1], size[1] - there[:, 0], there[:, 3]], dim=1)
    features = teacher.features(
        [{"image": torch.as_tensor(seen.transpose(2, 0, 1).copy())}], "BGR", torch.device("cpu")
    )
    return teacher.box_logits(features, [Boxes(there)]).log_softmax(1)


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory):
    """The folder of one uninterrupted command, and what is in it."""
    folder = tmp_path_factory.mktemp("whole") / "knowledge"
    return folder, stored(stage, folder, "--dtype", "float32", "--boxes", 30)


def test_boxes_and_logits_are_the_teachers(stage, whole):
    _, found = whole
    predictor = plain_teacher(stage)
    objects = json.loads(annotations(stage).read_text())["annotations"]
    for number, image in found.items():
        kinds = image.kinds.tolist()
        assert kinds == sorted(kinds) and kinds.count(GROUND_TRUTH) == 3 and len(kinds) <= 3 + 30
        truth = [
            [x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in objects if each["image_id"] == number)
        ]
        assert image.boxes[:3].tolist() == truth
        detections = predictor(pixels_of(stage, number))["instances"].pred_boxes.tensor
        expected = detections[: kinds.count(DETECTION)]
        torch.testing.assert_close(image.boxes[image.kinds == DETECTION], expected, rtol=1e-4, atol=1e-2)
        assert len(expected) == min(30, len(detections)) > 0
        torch.testing.assert_close(image.logits, live_logits(stage, "a", number, image.boxes), rtol=1e-5, atol=1e-5)


def test_proposals_fill_what_detections_leave(stage, tmp_path):
    few = ["TEST.DETECTIONS_PER_IMAGE", 1]
    teacher = ["--teacher", stage / "a" / "teacher.yaml", stage / "a" / "teacher.pth", *few]
    result = store(stage, tmp_path, *teacher, "--boxes", 4, "--top-k", 8)
    assert result.returncode == 0, result.stderr[-2000:]
    opened = open_knowledge(str(tmp_path), "--output")
    predictor = plain_teacher(stage)
    rpn = {}
    predictor.model.proposal_generator.register_forward_hook(lambda *call: rpn.update(found=call[-1][0][0]))
    for number in range(5):
        image = opened.image(number)
        assert len(image.boxes) == 3 + 4 and (image.kinds == DETECTION).sum() <= 1
        predictor(pixels_of(stage, number + 1))
        expected = rpn["found"].proposal_boxes.tensor * (96 / 72)  # best first
        stored = image.boxes[image.kinds == PROPOSAL]
        torch.testing.assert_close(stored, expected[: len(stored)], rtol=1e-4, atol=1e-2)


def test_views_and_teachers_are_averaged_as_probabilities(stage, tmp_path):
    second = ["--teacher", stage / "b" / "teacher.yaml", stage / "b" / "teacher.pth"]
    first = ["--teacher", stage / "a" / "teacher.yaml", stage / "a" / "teacher.pth"]
    options = ["--dtype", "float32", "--boxes", 20, "--images", 1]
    result = store(stage, tmp_path, *first, *second, "--views", "flip", 72, 96, *options)
    assert result.returncode == 0, result.stderr[-2000:]
    image = open_knowledge(str(tmp_path), "--output").image(0)
    looks = [
        live_logits(stage, name, 1, image.boxes, size, flip=flip).exp()
        for name in "ab" for size in ((72, 96), (96, 128)) for flip in (False, True)
    ]  # fmt: skip
    torch.testing.assert_close(image.logits.exp(), torch.stack(looks).mean(0), rtol=1e-4, atol=1e-6)
    assert (looks[0] - looks[1]).abs().max() > 1e-4 and (looks[0] - looks[4]).abs().max() > 1e-4


def test_a_class_map_leaves_the_other_classes_out(stage, tmp_path):
    own = ["--teacher", stage / "a" / "teacher.yaml", stage / "a" / "teacher.pth"]
    names = ["DATASETS.COCO_JSON", [["mine", str(annotations(stage)), str(stage / "coco" / "train2017")]]]
    names += ["DATASETS.TRAIN", "('mine',)", "KD.TEACHER.CLASS_MAP", f"['{NAMES[3]}','{NAMES[0]}={NAMES[1]}']"]
    result = store(stage, tmp_path, *own, *names, "--dtype", "float32", "--images", 1)
    assert result.returncode == 0, result.stderr[-2000:]
    opened = open_knowledge(str(tmp_path), "--output")
    image = opened.image(0)
    assert opened.shared == (0, 3)
    probabilities = live_logits(stage, "a", 1, image.boxes).exp()
    expected = probabilities[:, [1, 3, 80]]
    columns = [number for number in range(81) if number not in (0, 3, 80)]
    assert (image.logits[:, columns] == FLOOR).all()
    torch.testing.assert_close(
        image.logits[:, [0, 3, 80]].exp(), expected / expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-6
    )
    both = store(stage, tmp_path / "b", *own, *names, *own, "--images", 1)
    assert "knows 2 (0, 3) of the student's classes and" in error_of(both) and "all 80; to be averaged" in error_of(
        both
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Without the lock, and with the output's own name in the command left out."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    return {name: content.replace(str(folder).encode(), b"") for name, content in files.items()}


def store_until_killed(stage: Path, output: Path, renamed: int) -> None:
    """As ``kill -9`` right before a file gets its name."""
    torch.set_num_threads(1)
    rename, done = os.replace, []

    def kill(source, target) -> None:
        if len(done) == renamed:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        rename(source, target)

    common_files.os.replace = kill
    store(stage, output, "--dtype", "float32", "--boxes", 30)


@pytest.mark.parametrize("renamed", [2, 3])  # in the last shard, and before the index
def test_a_killed_command_continues_to_the_same_bytes(stage, whole, tmp_path, renamed):
    output = tmp_path / "knowledge"
    killed = get_context("fork").Process(target=store_until_killed, args=(stage, output, renamed))
    killed.start()
    killed.join(300)
    assert killed.exitcode == -signal.SIGKILL
    assert len(shard_files(output)) == renamed and not (output / INDEX).exists()
    assert any(path.suffix == ".tmp" for path in output.iterdir())
    times = {path: path.stat().st_mtime_ns for path in shard_files(output)}
    again = store(stage, output, "--dtype", "float32", "--boxes", 30)
    assert f"{min(2 * renamed, 5)} of 5 images are stored, {max(5 - 2 * renamed, 0)} remain" in again.stdout
    assert contents(output) == contents(whole[0])
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_trial_is_completed_and_a_complete_folder_is_left_as_it_is(stage, tmp_path):
    trial = store(stage, tmp_path, "--images", 3)
    assert trial.returncode == 0 and "3 images, " in trial.stdout
    assert "COCO train2017 (118287 images, 80 classes, 128 boxes and the objects') takes 24.2 KB" in trial.stdout
    assert "--images" not in open_knowledge(str(tmp_path), "--output").about["command"]
    assert "3 of 5 images are stored, 2 remain" in store(stage, tmp_path).stdout
    before = contents(tmp_path)
    assert "5 of 5 images are stored, 0 remain" in store(stage, tmp_path).stdout and contents(tmp_path) == before


def test_eight_logits_of_128_boxes_are_small(stage, tmp_path):
    result = store(stage, tmp_path, "--top-k", 8, "--images", 1)
    assert "takes 6.9 KB an image" in result.stdout  # 51 bytes for each of 128 and 7.3 boxes
    image = open_knowledge(str(tmp_path), "--output").image(0)
    shard = shard_files(tmp_path)[0]
    assert shard.stat().st_size < 51 * len(image.boxes) + 4000  # names of 80 classes, the images


def test_two_processes_make_the_same_folder(stage, whole, tmp_path):
    output = tmp_path / "knowledge"
    result = store(stage, output, "--dtype", "float32", "--boxes", 30, "--num-gpus", 2)
    assert result.returncode == 0, result.stderr[-2000:]
    ours, theirs = contents(output), contents(whole[0])
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours.keys() - {INDEX})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--boxes", 0], "--boxes is 0; it must be a whole number, 1 or more"),
        (["--top-k", -1], "--top-k is -1"),
        (["--dtype", "float64"], "--dtype is 'float64'; it must be one of float16, float32"),
        (["--shard-images", 0], "--shard-images is 0"),
        (["--images", 0], "--images is 0"),
        (["--views", "flop"], "--views: 'flop' is neither 'flip' nor a short side of 16 or more. Did you mean 'flip'?"),
        (["--views", "480", "480"], "--views: '480 480' has a value twice"),
        (["--num-gpus", 0], "--num-gpus is 0"),
        (["KD.TEACHER.CONFIG_FILE", ""], "there is no teacher: KD.TEACHER.CONFIG_FILE is empty"),
        (["KD.TEACHER.WEIGHTS", "nowhere.pth"], "KD.TEACHER.WEIGHTS 'nowhere.pth'"),
        (["--teacher", "a.yaml", "w", "x", "y", "--boxes", 3], "--teacher a.yaml w: 'x' is no key"),
        (["DATASETS.TRAIN", "('nowhere',)"], "DATASETS.TRAIN: there is no data set 'nowhere'"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    ],
)
def test_bad_requests_are_one_line(stage, tmp_path, options, message):
    assert message in error_of(store(stage, tmp_path, *options))
    assert not shard_files(tmp_path)


def test_folders_of_other_commands_and_bad_teachers_are_refused(stage, whole, tmp_path):
    options = ["--dtype", "float32", "--boxes", 31]
    assert "made_of.boxes is 30 there, 31 now. Give another folder" in error_of(store(stage, whole[0], *options))
    other = ["--teacher", stage / "b" / "teacher.yaml", stage / "b" / "teacher.pth"]
    assert "made_of.teachers is [{" in error_of(store(stage, whole[0], "--dtype", "float32", "--boxes", 30, *other))
    with common_files.run_lock(tmp_path / "busy", "--output"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(common_files, "LOCK_SECONDS", 0.1)
        assert "busy' is in use by another run" in error_of(store(stage, tmp_path / "busy"))
    given = ["--teacher", stage / "a" / "teacher.yaml", stage / "a" / "teacher.pth"]
    given += ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "--boxes", 9]
    assert "it finds no boxes by itself. Take a teacher with an RPN" in error_of(store(stage, tmp_path, *given))
    model = build_model(plain_config(load_config(str(stage / "a" / "teacher.yaml"))))
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.weight, 1e38)
    torch.save({"model": model.state_dict()}, tmp_path / "wild.pth")
    wild = store(stage, tmp_path, "--images", 1, "KD.TEACHER.WEIGHTS", tmp_path / "wild.pth")
    assert "logits are not finite on" in error_of(wild) and "is it trained?" in error_of(wild)


@pytest.mark.parametrize("kind", ["cascade", "c4", "mask"])
def test_teachers_of_every_kind(stage, tmp_path, kind):
    """A Cascade teacher's logits are those of its first stage, as for the student's proposals in training."""
    extra = [*SIZE, "MODEL.MASK_ON", True] if kind == "mask" else [*SIZE, *KINDS[kind]]
    config, weights = teacher_files(tmp_path, *extra)
    result = store(
        stage, tmp_path / "out", "--dtype", "float32", "--images", 1, "--teacher", config, weights, "--boxes", 9
    )
    assert result.returncode == 0, result.stderr[-2000:]
    image = open_knowledge(str(tmp_path / "out"), "--output").image(0)
    assert len(image.boxes) > 3
    teacher = load_teacher(student_config((config, weights), *SIZE))
    seen = np.asarray(Image.fromarray(pixels_of(stage, 1)).resize((96, 72), Image.Resampling.BILINEAR)).copy()
    features = teacher.features([{"image": torch.as_tensor(seen).permute(2, 0, 1)}], "BGR", torch.device("cpu"))
    expected = teacher.box_logits(features, [Boxes(image.boxes * 0.75)]).log_softmax(1)
    torch.testing.assert_close(image.logits, expected, rtol=1e-4, atol=1e-4)


def test_unlabeled_sets_are_stored_without_ground_truth(stage, tmp_path):
    """A set with annotations, which are not used, and a folder of images, in its sub-folders too."""
    photos = stage / "coco" / "train2017"
    more = ["--dataset", f"other={annotations(stage)},{photos}", "--dataset", f"photos={photos.parent}/"]
    result = store(stage, tmp_path, *more, "--images", 2, "DATASETS.UNLABELED", "('other','photos')")
    assert result.returncode == 0, result.stderr[-2000:]
    opened = open_knowledge(str(tmp_path), "--output")
    name = f"{1:012d}.jpg"
    record = {"file_name": name, "height": 96, "width": 128}
    labeled = opened.image(opened.place("mine", {**record, "image_id": 1}))
    assert (labeled.kinds == GROUND_TRUTH).sum() == 3
    for dataset, number in (("other", 1), ("photos", f"train2017/{name}")):
        image = opened.image(opened.place(dataset, {**record, "image_id": number}))
        assert {*image.kinds.tolist()} <= {DETECTION, PROPOSAL} and (image.kinds == DETECTION).any()
        kept = labeled.kinds != GROUND_TRUTH
        assert torch.equal(image.boxes, labeled.boxes[kept]) and torch.equal(image.kinds, labeled.kinds[kept])
