"""Teachers see images normalised as in their own training, whatever the normalisation of the student's data."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torchvision.models import WeightsEnum, resnet18

from classification import auto_train, networks, train, trainer
from classification.checkpoint import save_student, weights_path
from classification.config import load_config
from classification.models import create_model, resize_inputs
from kd_det.common.command_line import parse_arguments
from kd_det.common.errors import SetupError
from kd_det.common.processes import CommandError
from kd_det.common.signals import StopRequested

DATA = SimpleNamespace(
    mean=(0.51, 0.49, 0.44), std=(0.27, 0.26, 0.28), num_classes=3, class_names=("a", "b", "c"), image_size=32
)
PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(mean, std):
    return (PIXELS - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


PRETRAINED = ["TEACHER.NAME", "torchvision/resnet18", "TEACHER.PRETRAINED", "True"]


@pytest.fixture
def random_weights(monkeypatch):
    """In place of torchvision's, which would be downloaded."""
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: resnet18(weights=None).state_dict())


@pytest.mark.parametrize(
    "settings",
    [["DISTILLER", "dkd"], ["DISTILLER", "hcd"], ["DISTILLER", "fitnet", "DATA.CONFIDENCE_RANGE", "(0.0, 0.5)"]],
)
def test_logits_of_a_reinitialised_classifier_are_refused(settings, random_weights):
    with pytest.raises(
        SetupError, match=r"TEACHER\.PRETRAINED True: .*resnet18' was not trained on the classes of the data.*WEIGHTS"
    ):
        networks.build_teacher(load_config("", [*PRETRAINED, *settings]), DATA)


def test_features_under_a_reinitialised_classifier_are_allowed_and_logged(random_weights, caplog):
    cfg = load_config("", [*PRETRAINED, "DISTILLER", "reviewkd"])
    networks.build_teacher(cfg, DATA)
    assert "was not trained on the classes of the data; DISTILLER 'reviewkd' uses only its features" in caplog.text
    with pytest.raises(SetupError, match="not trained on the classes"):
        networks.build_teacher(cfg, DATA, uses_logits=True)


@pytest.mark.parametrize(
    ("names", "data", "fits"), [("n{:08}", "folder", True), ("own {}", "folder", False), ("own {}", "imagenet", True)]
)
def test_a_thousand_classes_are_imagenets_by_their_names(names, data, fits, random_weights):
    classes = SimpleNamespace(
        **{**vars(DATA), "num_classes": 1000, "class_names": [names.format(i) for i in range(1000)]}
    )
    cfg = load_config("", [*PRETRAINED, "DISTILLER", "kd", "DATA.NAME", data])
    if fits:
        assert networks.build_teacher(cfg, classes).model.has_own_classifier
    else:
        with pytest.raises(SetupError, match="not trained on the classes"):
            networks.build_teacher(cfg, classes)


@pytest.mark.parametrize(("code", "expected"), [(143, StopRequested), (-2, StopRequested), (2, SetupError)])
def test_a_training_that_failed_or_was_stopped(code, expected, tmp_path, monkeypatch):
    def stream(*args, **kwargs):
        raise CommandError("its lines", code)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(auto_train, "stream", stream)
    cfg = load_config("digits/pairs/resnet20_resnet8.yaml")
    with pytest.raises(expected) as raised:
        auto_train.train_teacher(cfg)
    if expected is SetupError:
        assert "TEACHER.AUTO_TRAIN" in str(raised.value) and "code 2" in str(raised.value)
    else:
        assert raised.value.code == 128 + abs(code) % 128


def test_a_file_without_a_run_is_used_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(auto_train, "stream", lambda *args, **kwargs: pytest.fail("a training began"))
    folder = tmp_path / "output" / "digits" / "mine"
    folder.mkdir(parents=True)
    (folder / "model.pth").write_bytes(b"")
    auto_train.train_teacher(load_config("", ["TEACHER.WEIGHTS", "digits/mine"]))


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/resnet18"])
def test_our_own_teacher_gives_the_outputs_of_its_training(name, tmp_path):
    # Fine-tuned from the library's weights or not: a student sees the data's own normalisation.
    student = create_model(name, 3, image_size=64).eval()
    resize_inputs(student, 64)
    path = tmp_path / "model.pth"
    save_student(path, student, {"name": name, "num_classes": 3, "class_names": ["a", "b", "c"]})
    cfg = load_config("", ["TEACHER.NAME", name, "TEACHER.WEIGHTS", str(path), "TEACHER.IMAGE_SIZE", "64"])
    loaded = networks.build_teacher(cfg, DATA)
    assert student.input_mean != DATA.mean and not loaded.renormalizes
    images = normalised(DATA.mean, DATA.std)
    with torch.no_grad():
        assert loaded(images).logits.equal(student(images))


def test_a_librarys_own_sees_its_own_normalisation(monkeypatch):
    model = create_model("timm/test_vit", 3, image_size=32)
    model.has_own_classifier = True
    monkeypatch.setattr(networks, "create_from", lambda node, data: model)  # PRETRAINED would download
    monkeypatch.setattr(DATA, "class_names", ("n00000001", "n00000002", "n00000003"))
    cfg = load_config("", ["TEACHER.NAME", "timm/test_vit", "TEACHER.PRETRAINED", "True"])
    pretrained = networks.build_teacher(cfg, DATA)
    expected = model(normalised(model.input_mean, model.input_std), return_features=True)
    torch.testing.assert_close(pretrained(normalised(DATA.mean, DATA.std)).logits, expected.logits)


def test_auto_train_trains_it_alone_by_its_configurations(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(auto_train, "stream", lambda command, **_: commands.append(command))
    cfg = load_config(["cifar100/methods/kd.yaml", "cub200/pairs/swin_t_mv2.yaml"], ["DATA.ROOT", "elsewhere"])
    auto_train.train_teacher(cfg)
    args = parse_arguments(train.parser(), commands[0][3:])
    trained = load_config(args.config_file, args.opts)
    name = "timm/swin_tiny_patch4_window7_224.ms_in1k"
    alone = ["cub200/base.yaml", "cifar100/schedules/fine_tuned.yaml"]
    assert trained == load_config(alone, ["STUDENT.NAME", name, "DATA.ROOT", "elsewhere"])
    assert args.resume and trained.OUTPUT_DIR == "output/cub200/vanilla_swin_t"
    assert weights_path(cfg.TEACHER.WEIGHTS).parent.as_posix() == trained.OUTPUT_DIR


def command_for(cfg, monkeypatch):
    """The configuration of the command that trains the teacher; None if none is run."""
    commands = []
    monkeypatch.setattr(auto_train, "stream", lambda command, **_: commands.append(command))
    auto_train.train_teacher(cfg)
    if not commands:
        return None
    args = parse_arguments(train.parser(), commands[0][3:])
    return load_config(args.config_file, args.opts)


DIGITS = ["cifar100/methods/kd.yaml", "digits/pairs/resnet20_resnet8.yaml"]
NOISY = ["DATA.LABEL_NOISE", "0.2", "DATA.LABEL_NOISE_SEED", "3", "TEACHER.WEIGHTS", "digits/noisy_resnet20"]


def test_auto_train_passes_the_data_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = [*NOISY, "DATA.AUTO_AUGMENT", "True", "DATA.BATCH_SIZE", "32", "DATA.WORKERS", "5", "SEED", "7"]
    trained = command_for(load_config(DIGITS, data), monkeypatch)
    expected = load_config(["digits/base.yaml"], ["STUDENT.NAME", "resnet20"]).DATA
    expected.update({"LABEL_NOISE": 0.2, "LABEL_NOISE_SEED": 3, "AUTO_AUGMENT": True, "WORKERS": 5})
    assert expected == trained.DATA and trained.OUTPUT_DIR == "output/digits/noisy_resnet20"
    assert not trained.SOLVER.SAVE_BEST and trained.SEED == 0
    # Its own files say whether a fine-tuned teacher sees AutoAugment; its students do.
    tokens = load_config(["cifar100/methods/kd.yaml", "cifar100/pairs/convnext_t_deit_t.yaml"])
    assert tokens.DATA.AUTO_AUGMENT and not command_for(tokens, monkeypatch).DATA.AUTO_AUGMENT


def test_auto_train_for_the_best_epoch(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    best = ["TEACHER.WEIGHTS", "output/digits/best/model_best.pth"]
    trained = command_for(load_config(DIGITS, best), monkeypatch)
    assert trained.SOLVER.SAVE_BEST and trained.OUTPUT_DIR == "output/digits/best"


@pytest.mark.parametrize("weights", ["digits/x", "output/digits/x/model.pth", "given/model.pth"])
@pytest.mark.parametrize("imported", [False, True])
def test_auto_train_never_replaces_an_imported_or_given_file(weights, imported, monkeypatch, tmp_path):
    """Beside it lie the states of a run that was interrupted."""
    monkeypatch.chdir(tmp_path)
    cfg = load_config(DIGITS, ["TEACHER.WEIGHTS", weights])
    path = weights_path(weights)
    (path.parent / "states" / "3-0").mkdir(parents=True)
    save_student(path, create_model("resnet20", 10), {"name": "resnet20", **({} if imported else {"epoch": 3})})
    trained = command_for(cfg, monkeypatch)
    assert (trained is None) == (imported or weights.startswith("given"))


def test_a_teacher_of_other_labels_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "output" / "digits" / "noisy_resnet20"
    folder.mkdir(parents=True)
    (folder / "model.pth").write_bytes(b"")
    data = {"LABEL_NOISE": 0.2, "LABEL_NOISE_SEED": 3}
    (folder / "result.json").write_text(json.dumps({"config": {"DATA": data}}))
    assert command_for(load_config(DIGITS, NOISY), monkeypatch) is None
    for key, value in (("LABEL_NOISE", "0.1"), ("LABEL_NOISE_SEED", "4")):
        with pytest.raises(SetupError, match=rf"was trained with DATA\.{key} .*, this run has {value}.*another name"):
            command_for(load_config(DIGITS, [*NOISY, f"DATA.{key}", value]), monkeypatch)


def test_without_a_method_the_teacher_is_neither_trained_nor_used(tmp_path, monkeypatch, capsys):
    trained = []
    result = {"last_top1": 1.0, "best_top1": 1.0}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(auto_train, "train_teacher", lambda cfg: pytest.fail("the teacher was trained"))
    monkeypatch.setattr(trainer, "build_accelerator", lambda cfg: None)
    train_it = SimpleNamespace(train=lambda received: result)
    monkeypatch.setattr(trainer, "Trainer", lambda cfg, *_, **__: trained.append(cfg) or train_it)
    train.main(["--config-file", "digits/pairs/resnet20_resnet8.yaml"])
    assert trained[0].OUTPUT_DIR == "output/digits/vanilla_resnet8"
    assert "TEACHER.NAME 'resnet20' is not used; a method's file" in capsys.readouterr().out
