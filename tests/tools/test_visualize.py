"""tools/visualize.py: one picture an image, with the panels that there is something for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.panels import GAP
from kd_det.visualization import image_files, visualize
from tests.mini_coco import annotation_file
from tests.tiny import build, student_config, teacher_files
from tests.tools.commands import error_of, run_tool


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A configuration with a teacher, and a student's checkpoint."""
    folder = tmp_path_factory.mktemp("student")
    cfg = student_config(teacher_files(folder, "MODEL.ROI_HEADS.NUM_CLASSES", 80), "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    cfg.OUTPUT_DIR = str(folder)
    (folder / "student.yaml").write_text(cfg.dump())
    torch.save({"model": build(cfg).state_dict()}, folder / "model_final.pth")
    return folder


def width(path):
    return cv2.imread(str(path)).shape[1]


PANEL = 640  # 96 x 128 enlarged to a short side of 480


def test_ground_truth_teacher_and_student(student, coco, tmp_path):
    dataset = f"mine={annotation_file(coco, 'val2017')},{coco / 'coco' / 'val2017'}"
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (1, 2):  # an image is one of the set's whatever path leads to it
        (folder / f"{number}.jpg").symlink_to(coco / "coco" / "val2017" / f"00000000000{number}.jpg")
    stray = tmp_path / "1.jpg"  # the same name as another's, without ground truth
    cv2.imwrite(str(stray), np.zeros((96, 128, 3), np.uint8))
    result = run_tool(
        "visualize", "--config-file", student / "student.yaml", "--dataset", dataset, "--threshold", 0.02,
        "--input", folder, stray, "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "1_2.png", "2.png"]
    assert result.stdout.splitlines()[-1].endswith("1_2.png")
    assert width(tmp_path / "out" / "2.png") == 3 * PANEL + 2 * GAP
    assert width(tmp_path / "out" / "1_2.png") == 2 * PANEL + GAP


def test_without_a_teacher_and_with_a_high_threshold(student, coco, tmp_path):
    image = coco / "coco" / "val2017" / "000000000003.jpg"
    result = run_tool(
        "visualize", "--config-file", student / "student.yaml", "--weights", student / "model_final.pth",
        "--threshold", 1, "--input", image, "--output", tmp_path, "KD.TEACHER.CONFIG_FILE", "",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    drawn = cv2.imread(str(tmp_path / "000000000003.png"))
    assert drawn.shape[1] == PANEL
    # Nothing has a score above 1: the picture is the image itself, its colours in their order.
    middle = cv2.resize(drawn[-480:], (128, 96), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(middle - cv2.imread(str(image)).astype(int)).mean() < 20


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": "nowhere.pth"}, "--weights 'nowhere.pth'"),
        ({"threshold": 2.0}, "--threshold is 2.0"),
        ({"inputs": ["setup.py"]}, "--input: 'setup.py' cannot be read as an image"),
        ({"datasets": ["nowhere"]}, "there is no data set 'nowhere'"),
    ],
)
def test_refused_requests(student, coco, tmp_path, changed, message):
    cfg = load_config(str(student / "student.yaml"))
    image = coco / "coco" / "val2017" / "000000000003.jpg"
    given = {"weights": "", "inputs": [str(image)], "threshold": 0.5, **changed}
    with pytest.raises(SetupError) as refused:
        visualize(cfg, output=str(tmp_path), **given)
    assert message in str(refused.value)


def test_user_errors_are_one_line(student, tmp_path):
    options = ["--config-file", student / "student.yaml", "--output", tmp_path]
    assert "there is no 'nowhere.jpg'" in error_of(run_tool("visualize", *options, "--input", "nowhere.jpg"))


def test_images_of_folders(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "empty.png").mkdir()
    assert [path.name for path in image_files([str(tmp_path), str(tmp_path / "notes.txt")])] == [
        "a.png",
        "b.JPG",
        "notes.txt",
    ]
    with pytest.raises(SetupError, match=r"the folder '.*empty\.png' has no image"):
        image_files([str(tmp_path / "empty.png")])


def test_help_has_an_example():
    assert "python tools/visualize.py --config-file" in run_tool("visualize", "--help").stdout
