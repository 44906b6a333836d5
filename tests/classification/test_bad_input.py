"""User errors: each ends before the first step with one line that names key, value and remedy."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def refused(distil, monkeypatch, capsys, tmp_path):
    """``refused(*overrides)`` runs the command's own entry point and returns its one error line."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: object, flags: tuple[str, ...] = ()) -> str:
        from classification import train
        from classification.trainer import Trainer

        monkeypatch.setattr(Trainer, "train", lambda self, received: pytest.fail("training began"))
        with pytest.raises(SystemExit) as raised:
            train.main([*flags, *map(str, [*distil, "DISTILLER", "dkd", "OUTPUT_DIR", "run", *overrides])])
        assert raised.value.code == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith("error: ")
        return message

    return run


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["DKD.BETTA", "2.0"], ["DKD.BETTA", "Did you mean 'DKD.BETA'?"]),
        (["DISTILLER", "dkdd"], ["DISTILLER: there is no distiller 'dkdd'. Did you mean 'dkd'?"]),
        (["DISTILLER", "dkd+dkd"], ["DISTILLER 'dkd+dkd': 'dkd' is listed twice; leave one out."]),
        (["STUDENT.NAME", "resnet9"], ["resnet9", "Did you mean"]),
        (["DATA.NAME", "cifar10"], ["cifar10", "cifar100"]),
        (["DKD.TEMPERATURE", "0.0"], ["DKD.TEMPERATURE", "0"]),
        (["DISTILLER", "kd", "KD.TEMPERATURE", "-1.0"], ["KD.TEMPERATURE", "-1"]),
        (["DISTILLER", "sdd", "SDD.SCALES", "(1, 16)"], ["SDD.SCALES", "16"]),
        (["DISTILLER", "sdd", "SDD.SCALES", "(2, 4)"], ["SDD.SCALES", "2"]),
        (["TEACHER.WEIGHTS", "absent/model.pth"], ["TEACHER.WEIGHTS", "absent/model.pth"]),
        (["TEACHER.WEIGHTS", ""], ["TEACHER.WEIGHTS"]),
        (["TEACHER.NAME", ""], ["TEACHER.NAME"]),
        (["TEACHER.NAME", "resnet20"], ["TEACHER.NAME", "'resnet14'", "'resnet20'"]),
        (["TEACHER.WEIGHTS", "digits/nothing", "TEACHER.AUTO_TRAIN", "True"], ["TEACHER.AUTO_TRAIN", "digits/nothing"]),
        (["SOLVER.MIXED_PRECISION", "half"], ["SOLVER.MIXED_PRECISION", "half", "bf16"]),
        (["SOLVER.EPOCHS", "0"], ["SOLVER.EPOCHS", "0"]),
        (["SOLVER.LR", "-0.1"], ["SOLVER.LR", "-0.1"]),
        (["DATA.BATCH_SIZE", "5000"], ["DATA.BATCH_SIZE", "5000"]),
        (["DATA.LABEL_NOISE", "1.5"], ["DATA.LABEL_NOISE", "1.5"]),
        (["DATA.CONFIDENCE_RANGE", "(0.5, 0.2)"], ["DATA.CONFIDENCE_RANGE", "0.5"]),
        (["DATA.NAME", "cub200"], ["CUB_200_2011"]),
        (["SEED"], ["SEED"]),
        (["KD.TEMPERATURE", "1e-30"], ["KD.TEMPERATURE is 1e-30", "from 1e-06 to 1e+06"]),
        (["DISTILLER", "mcld", "MCLD.TEMPERATURE", "1e7"], ["MCLD.TEMPERATURE is 10000000.0"]),
        (["DKD.WEIGHT", "None"], ["DKD.WEIGHT is None"]),
        (["DISTILLER", "sdd", "SDD.SCALES", "(1, 100)"], ["SDD.SCALES (1, 100)", "8 x 8"]),
        (["SOLVER.STEPS", "(210, 150)"], ["SOLVER.STEPS is (210, 150)", "increasing"]),
        (["SOLVER.STEPS", "['a']"], ["SOLVER.STEPS is ('a',)"]),
        (["SOLVER.MOMENTUM", "5.0"], ["SOLVER.MOMENTUM is 5.0", "below 1"]),
        (["SOLVER.LR", "1e999"], ["SOLVER.LR is inf"]),
        (["OUTPUT_DIR", "None"], ["OUTPUT_DIR is None"]),
        (["DATA.ROOT", "None"], ["DATA.ROOT is None"]),
        (["SEED", "-1"], ["SEED is -1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused(refused, overrides, expected):
    line = refused(*overrides)
    for text in expected:
        assert text in line, line


def test_truncated_teacher(refused, teacher_file, tmp_path):
    (tmp_path / "half.pth").write_bytes(teacher_file.read_bytes()[:5000])
    line = refused("TEACHER.WEIGHTS", "half.pth")
    assert "half.pth" in line and "truncated" in line


def test_teacher_of_another_model(refused, teacher_file, tmp_path):
    """A file without a description of its model: the message names the first entries that differ."""
    content = torch.load(teacher_file, weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "bare.pth")
    line = refused("TEACHER.WEIGHTS", "bare.pth", "TEACHER.NAME", "resnet20")
    assert "a different model" in line and "layer1.2.conv1.weight is not in the file" in line


def test_teacher_of_other_classes(refused, teacher_file, tmp_path):
    content = torch.load(teacher_file, weights_only=True)
    torch.save({**content, "num_classes": 100}, tmp_path / "other.pth")
    assert "100 classes, the data 10" in refused("TEACHER.WEIGHTS", "other.pth")
    torch.save({**content, "class_names": content["class_names"][::-1]}, tmp_path / "reversed.pth")
    assert "class 0" in refused("TEACHER.WEIGHTS", "reversed.pth")


def test_no_configuration_file(refused):
    line = refused(flags=("--config-file", "configs/digits/none.yaml"))
    assert "configs/digits/none.yaml" in line


def test_unreadable_images_are_listed(refused, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "mine" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "mine" / "train" / "dog" / "1.png").write_bytes(b"no picture")
    settings = ["DATA.NAME", "folder", "DATA.ROOT", "mine", "DATA.BATCH_SIZE", "2", "DISTILLER", "none"]
    message = refused(*settings, flags=("--check-data",))
    assert "1 images cannot be read" in message and "mine/train/dog/1.png" in message and "0.png" not in message
