"""User errors on the real command line: each ends at start-up with one line that names the remedy."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch

from tests.mini_coco import annotation_file, edit_annotations
from tests.tiny import TINY, teacher_files


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"), "MODEL.ROI_HEADS.NUM_CLASSES", 80)


@pytest.fixture
def refused(train_net, teacher):
    """``refused(*overrides, flags=..., datasets=...)`` runs the command line and returns its one error line."""

    def run(*overrides: object, flags: tuple[object, ...] = (), **options: object) -> str:
        settings = [
            *TINY, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
            "MODEL.ROI_HEADS.NUM_CLASSES", 80, "KD.TERMS", "('dkd',)", "KD.TEACHER.CONFIG_FILE", teacher[0],
            "KD.TEACHER.WEIGHTS", teacher[1], "DATASETS.TRAIN", "('coco_2017_train',)",
            "DATASETS.TEST", "('coco_2017_val',)",
            "SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 1, "DATALOADER.NUM_WORKERS", 0,
            "INPUT.MIN_SIZE_TRAIN", "(96,)", "KD.TEACHER.DTYPE", "float32",
        ]  # fmt: skip
        result = train_net(*flags, *settings, *overrides, **options)
        assert result.returncode == 2, (result.returncode, result.stdout[-2000:], result.stderr[-2000:])
        assert "Starting training" not in result.stdout + result.stderr and "Traceback" not in result.stderr
        line = result.stderr.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    return run


def test_teacher_weights_not_found(refused, tmp_path):
    line = refused("KD.TEACHER.WEIGHTS", tmp_path / "nowhere.pth")
    assert "KD.TEACHER.WEIGHTS" in line and "nowhere.pth" in line and "no such file" in line


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_truncated_teacher_weights(refused, teacher, tmp_path, suffix):
    whole, damaged = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    if suffix == ".pth":
        shutil.copy(teacher[1], whole)
    else:
        state = {name: value.numpy() for name, value in torch.load(teacher[1], weights_only=True)["model"].items()}
        whole.write_bytes(pickle.dumps({"model": state, "__author__": "test"}))
    damaged.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    line = refused("KD.TEACHER.WEIGHTS", damaged)
    assert "KD.TEACHER.WEIGHTS" in line and "damaged" in line and "truncated" in line


def test_teacher_weights_that_are_no_checkpoint(refused, tmp_path):
    file = tmp_path / "text.pth"
    file.write_text("not a checkpoint")
    assert "cannot be read" in refused("KD.TEACHER.WEIGHTS", file)


class Exploit:
    def __reduce__(self):
        return (print, ("this would run the file's code",))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_teacher_weights_that_would_run_code(refused, tmp_path, suffix):
    file = tmp_path / f"exploit{suffix}"
    content = {"model": {"weight": np.zeros(1), "other": Exploit()}, "__author__": "test"}
    torch.save(content, file) if suffix == ".pth" else file.write_bytes(pickle.dumps(content))
    line = refused("KD.TEACHER.WEIGHTS", file)
    assert "cannot be read" in line


def test_incomplete_teacher_weights(refused, teacher, tmp_path):
    state = torch.load(teacher[1], weights_only=True)["model"]
    del state["roi_heads.box_predictor.cls_score.weight"]
    torch.save({"model": state}, tmp_path / "part.pth")
    line = refused("KD.TEACHER.WEIGHTS", tmp_path / "part.pth")
    assert "KD.TEACHER.WEIGHTS" in line and "roi_heads.box_predictor.cls_score.weight is not in the file" in line


def test_teacher_weights_of_another_shape(refused, teacher, tmp_path):
    state = torch.load(teacher[1], weights_only=True)["model"]
    state["backbone.fpn_output2.weight"] = state["backbone.fpn_output2.weight"][:8]
    torch.save({"model": state}, tmp_path / "thin.pth")
    line = refused("KD.TEACHER.WEIGHTS", tmp_path / "thin.pth")
    assert "backbone.fpn_output2.weight is (24, 24, 3, 3) in the model and (8, 24, 3, 3) in the file" in line


def test_another_number_of_classes(refused):
    line = refused("KD.TEACHER.OPTS", "['MODEL.ROI_HEADS.NUM_CLASSES', 20]")
    assert "NUM_CLASSES is 80 for the student and 20 for the teacher" in line


def test_other_class_names(refused):
    # The panoptic set's first classes are COCO's, the embedded digits' are not.
    line = refused("KD.TEACHER.OPTS", "['DATASETS.TRAIN', ('digits_det_train',)]")
    assert "class 0 is 'person' for the student and '0' for the teacher" in line


def test_a_class_map_with_an_unknown_class(refused):
    teachers = ("KD.TEACHER.OPTS", "['DATASETS.TRAIN', ('coco_2017_train',)]")
    line = refused("KD.TEACHER.CLASS_MAP", "['person', 'cat=zebraa']", *teachers)
    assert "KD.TEACHER.CLASS_MAP: the teacher has no class 'zebraa'. Did you mean 'zebra'?" in line


def test_a_misspelt_key_in_a_file(refused, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("KD:\n  TEACHER:\n    CONFIG: x.yaml\n")
    line = refused(flags=("--config-file", file))
    assert "'KD.TEACHER.CONFIG'" in line and "Did you mean 'KD.TEACHER.CONFIG_FILE'?" in line and "config.yaml" in line


def test_student_weights_of_another_network(refused):
    # The tiny backbone is no ResNet-18 of torchvision's.
    line = refused("MODEL.WEIGHTS", "torchvision://resnet18")
    assert "MODEL.WEIGHTS" in line and "MODEL.RESNETS.DEPTH" in line


def test_unknown_torchvision_network(refused):
    line = refused("MODEL.WEIGHTS", "torchvision://resnet19")
    assert "torchvision://resnet19" in line and "Did you mean 'resnet18'?" in line


def test_missing_student_weights(refused):
    line = refused("MODEL.WEIGHTS", "nowhere/model.pth")
    assert "'nowhere/model.pth'" in line and "MODEL.WEIGHTS" in line


@pytest.fixture
def copied(coco, tmp_path):
    """A copy of the miniature COCO to damage."""
    shutil.copytree(coco / "coco", tmp_path / "datasets" / "coco")
    return tmp_path / "datasets"


def test_missing_annotations(refused, copied):
    annotation_file(copied, "val2017").unlink()
    line = refused(datasets=copied)
    assert (
        "DATASETS.TEST 'coco_2017_val'" in line and "instances_val2017.json" in line and "DETECTRON2_DATASETS" in line
    )


def test_missing_images(refused, copied):
    shutil.rmtree(copied / "coco" / "train2017")
    line = refused(datasets=copied)
    assert "DATASETS.TRAIN 'coco_2017_train'" in line and "train2017" in line and "DETECTRON2_DATASETS" in line


def test_damaged_annotations(refused, copied):
    file = annotation_file(copied, "train2017")
    file.write_text(file.read_text()[:-100])
    assert "is not JSON" in refused(datasets=copied)


def test_annotations_of_an_unknown_image(refused, copied):
    edit_annotations(copied, "train2017", lambda content: content["annotations"][0].update(image_id=99))
    line = refused(datasets=copied)
    assert "1 annotations have a image_id that the file does not define (annotations[0]: 99)" in line


def test_annotations_of_an_unknown_category(refused, copied):
    edit_annotations(copied, "train2017", lambda content: content["annotations"][0].update(category_id=1000))
    line = refused(datasets=copied)
    assert "category_id" in line and "1000" in line


def test_degenerate_boxes_are_counted_and_left_out(train_net, copied, teacher):
    def flatten(content):
        for annotation in content["annotations"][:2]:
            annotation["bbox"][2] = 0

    edit_annotations(copied, "train2017", flatten)
    result = train_net(
        *TINY, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES", 80, "KD.TERMS", "('dkd',)", "KD.TEACHER.CONFIG_FILE", teacher[0],
        "KD.TEACHER.WEIGHTS", teacher[1], "DATASETS.TRAIN", "('coco_2017_train',)", "SOLVER.BASE_LR", 1e-6,
        "KD.TEACHER.DTYPE", "float32",
        "SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", "(96,)",
        datasets=copied,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2 boxes have no area" in result.stdout + result.stderr


def test_evaluation_without_weights(refused):
    line = refused(flags=("--eval-only",))
    assert "--eval-only" in line and "model_final.pth" in line
