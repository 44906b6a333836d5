"""Teachers see images as they saw them in their own training, whatever the student's data are normalised by."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from classification import teacher, train
from classification.checkpoint import save_student
from classification.config import load_config
from classification.models import create_model
from classification.models.resizing import resize_inputs
from kd_det.common.command_line import parse_arguments

DATA = SimpleNamespace(
    mean=(0.51, 0.49, 0.44), std=(0.27, 0.26, 0.28), num_classes=3, class_names=("a", "b", "c"), image_size=32
)
PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(mean, std):
    return (PIXELS - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/resnet18"])
def test_one_that_we_trained_answers_as_it_did_as_a_student(name, tmp_path):
    # Fine-tuned from the library's weights or not: a student sees the data's own normalisation.
    student = create_model(name, 3, image_size=64).eval()
    resize_inputs(student, 64)
    path = tmp_path / "model.pth"
    save_student(path, student, {"name": name, "num_classes": 3, "class_names": ["a", "b", "c"]})
    cfg = load_config("", ["TEACHER.NAME", name, "TEACHER.WEIGHTS", str(path), "TEACHER.IMAGE_SIZE", "64"])
    loaded = teacher.build_teacher(cfg, DATA)
    assert student.input_mean != DATA.mean and not loaded.renormalizes
    images = normalised(DATA.mean, DATA.std)
    with torch.no_grad():
        assert loaded(images).logits.equal(student(images))


def test_a_librarys_own_sees_its_own_normalisation(monkeypatch):
    model = create_model("timm/test_vit", 3, image_size=32)
    monkeypatch.setattr(teacher, "create_from", lambda node, data: model)  # PRETRAINED would download
    cfg = load_config("", ["TEACHER.NAME", "timm/test_vit", "TEACHER.PRETRAINED", "True"])
    pretrained = teacher.build_teacher(cfg, DATA)
    expected = model(normalised(model.input_mean, model.input_std), return_features=True)
    torch.testing.assert_close(pretrained(normalised(DATA.mean, DATA.std)).logits, expected.logits)


def test_auto_train_trains_it_alone_by_its_configurations(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(teacher, "stream", lambda command, **_: commands.append(command))
    cfg = load_config(["cifar100/methods/kd.yaml", "cub200/pairs/swin_t_mv2.yaml"], ["DATA.ROOT", "elsewhere"])
    teacher.train_teacher(cfg)
    args = parse_arguments(train.parser(), commands[0][3:])
    trained = load_config(args.config_file, args.opts)
    name = "timm/swin_tiny_patch4_window7_224.ms_in1k"
    alone = ["cub200/base.yaml", "cifar100/schedules/fine_tuned.yaml"]
    assert trained == load_config(alone, ["STUDENT.NAME", name, "DATA.ROOT", "elsewhere"])
    assert args.resume and trained.OUTPUT_DIR == "output/cub200/vanilla_swin_t"
    assert teacher.weights_path(cfg.TEACHER.WEIGHTS).parent.as_posix() == trained.OUTPUT_DIR


def test_without_a_method_the_teacher_is_neither_trained_nor_used(monkeypatch, capsys):
    trained = []
    result = {"last_top1": 1.0, "best_top1": 1.0}
    monkeypatch.setattr(train, "train_teacher", lambda cfg: pytest.fail("the teacher was trained"))
    monkeypatch.setattr(train, "build_accelerator", lambda cfg: None)
    train_it = SimpleNamespace(train=lambda: result)
    monkeypatch.setattr(train, "Trainer", lambda cfg, *_, **__: trained.append(cfg) or train_it)
    train.main(["--config-file", "digits/pairs/resnet20_resnet8.yaml"])
    assert trained[0].OUTPUT_DIR == "output/digits/vanilla_resnet8"
    assert "TEACHER.NAME 'resnet20' is not used; a method's file" in capsys.readouterr().out
