"""kd-det visualize: one picture per image, with the panels that have content."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.engine import commands
from kd_det.engine.visualization import image_files, visualize
from kd_det.modeling.drawing import GAP
from tests.mini_coco import annotation_file
from tests.tiny import build, student_config, teacher_files
from tests.tools.commands import run_here


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
    result = run_here(
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
    result = run_here(
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere.jpg", "MODEL.DEVICE", "cpu"], "there is no 'nowhere.jpg'"),  # the override is no image
        (["--input", "setup.py", "--output", "setup.py"], "--output 'setup.py' cannot be created: File exists"),
    ],
)
def test_user_errors_are_one_line(student, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exited:
        commands.visualize(["--config-file", str(student / "student.yaml"), "--output", str(tmp_path), *arguments])
    line = capsys.readouterr().err
    assert exited.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1 and message in line


def images_in(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((60, 80, 3), 90, np.uint8))


def test_images_of_folders(tmp_path):
    images_in(tmp_path, "b.JPG", "a.png", "sub/deeper/a.png", "sub/c.jpg")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty.png").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in image_files([str(tmp_path), str(tmp_path / "notes.txt")])]
    assert found == ["a.png", "b.JPG", "sub/c.jpg", "sub/deeper/a.png", "notes.txt"]
    with pytest.raises(SetupError, match=r"the folder '.*empty\.png' and its sub-folders have no image"):
        image_files([str(tmp_path / "empty.png")])


def test_pictures_of_sub_folders_go_to_sub_folders_and_are_not_inputs_of_the_next_call(student, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "images" / "pictures"
    images_in(folder, "a.png", "a.jpg", "a_2.jpg", "sub/a.png")
    cfg = load_config(str(student / "student.yaml"), ["KD.TEACHER.CONFIG_FILE", ""])
    expected = ["a.png", "a_2.png", "a_2_2.png", "sub/a.png"]  # of a.jpg, a.png, a_2.jpg, sub/a.png
    for _ in range(2):
        written = visualize(cfg, "", [str(folder)], str(out), 1.0)
        assert [str(path.relative_to(out)) for path in written] == expected
        assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(written)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        commands.visualize(["--help"])
    assert "kd-det visualize --config-file" in capsys.readouterr().out
