"""Each baseline trains two epochs on a part of the digits, and a run that is killed and resumed has the same bits."""

from __future__ import annotations

import json

import pytest
import torch

from classification.config import check_config, load_config
from classification.data import build
from classification.data.small_images import ImagesInMemory, read_digits
from classification.evaluate import evaluate_run
from classification.models import ReusedClassifier
from classification.networks import build_student
from classification.optimizers import DOT, build_optimizer
from classification.states import last_state
from classification.trainer import Trainer, build_accelerator
from kd_det.common.errors import SetupError
from tests.classification.conftest import ROOT

PAIR = "digits/pairs/resnet20_resnet8.yaml"
FILE = "cifar100/methods.yaml"
NAMES = [
    *("crd", "ofd", "sp", "nst", "pkt", "vid", "kdsvd", "simkd", "catkd", "dist", "ctkd", "mlkd"),
    *("dot_kd", "dot_dkd", "lskd_kd", "lskd_dkd", "lskd_ctkd", "lskd_mlkd", "crd_kd", "sdd_reviewkd"),
]
# The others differ from these in settings alone.
TRAINED = [name for name in NAMES if name not in ("crd_kd", "dot_dkd", "lskd_dkd", "lskd_ctkd")]


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def few_digits():
    """The digits with 80 training and 20 validation scans."""

    def few(root):
        content = read_digits()
        train, val = (
            ImagesInMemory(split.images[:count], split.labels[:count])
            for split, count in ((content.train, 80), (content.val, 20))
        )
        return content._replace(train=train, val=val)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.IN_MEMORY, "digits", few)
        yield


def run(name: str, teacher, output, *settings, kill: int = 0, resume: bool = False):
    """Trains ``FILE``'s method; with ``kill``, as many steps. Returns the trainer and, at the end, the result."""
    weights = ["TEACHER.NAME", "resnet14", "TEACHER.WEIGHTS", str(teacher), "TEACHER.AUTO_TRAIN", False]
    solver = ["SOLVER.EPOCHS", 2, "DATA.BATCH_SIZE", 20, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.LR", 0.02]
    settings = [*weights, *solver, "CRD.NEGATIVES", 64, "OUTPUT_DIR", str(output), *settings]
    cfg = load_config([f"{FILE}:{name}", PAIR], settings)
    check_config(cfg)
    trainer = Trainer(cfg, build_accelerator(cfg), resume=resume)
    take, taken = trainer._take_step, []

    def counted(batches):
        if kill and len(taken) == kill:
            raise Killed
        taken.append(take(batches))

    trainer._take_step = counted
    try:
        return trainer, trainer.train()
    except Killed:
        trainer.accelerator.end_training()
        return trainer, None


@pytest.mark.parametrize("name", TRAINED)
def test_two_epochs_and_the_same_bits_after_a_resumption(name, few_digits, teacher_file, tmp_path):
    whole, result = run(name, teacher_file, tmp_path / "whole")
    history = whole.progress.history
    assert len(history) == 2 and result["config"]["DISTILLER"] == whole.cfg.DISTILLER
    terms = [key for key in history[0] if key.startswith("loss_") and not key.startswith("loss_ce")]
    assert terms and all(torch.tensor(record[key]).isfinite() for record in history for key in terms)
    # Killed in the middle of the second of two epochs of 4 steps.
    _, nothing = run(name, teacher_file, tmp_path / "killed", kill=7)
    assert nothing is None and last_state(tmp_path / "killed").name == "1-2"
    resumed, _ = run(name, teacher_file, tmp_path / "killed", resume=True)
    assert resumed.progress.history == history
    ours, theirs = resumed.step.state_dict(), whole.step.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    saved = [torch.load(tmp_path / folder / "model.pth", weights_only=True)["model"] for folder in ("whole", "killed")]
    assert all(torch.equal(saved[0][key], value) for key, value in saved[1].items())
    moved = [part["momentum"] for part in resumed.optimizer.param_groups]
    assert moved == [0.9] and isinstance(resumed.optimizer.optimizer, DOT) == name.startswith("dot_")


def test_simkds_student_is_saved_and_evaluated_as_a_whole(few_digits, teacher_file, tmp_path, capsys):
    trainer, result = run("simkd", teacher_file, tmp_path / "run", "SOLVER.LR", 0.05)
    student = trainer.step.student
    assert isinstance(student, ReusedClassifier)
    assert result["parameters"] == sum(p.numel() for p in student.parameters())
    assert result["extra_parameters"] == student.added_parameters > 0
    theirs = torch.load(teacher_file, weights_only=True)["model"]
    assert torch.equal(student.classifier.weight, theirs["fc.weight"])
    evaluated = evaluate_run(trainer.cfg)
    assert evaluated["top1"] == result["last_top1"] == json.loads(capsys.readouterr().out.splitlines()[-1])["top1"]
    # It may be a teacher itself, and not the start of a further run of SimKD.
    cfg = trainer.cfg.clone()
    cfg.STUDENT.WEIGHTS = str(tmp_path / "run" / "model.pth")
    images = next(iter(trainer.data.val)).images
    again = build_student(cfg, trainer.data).eval()
    assert torch.equal(again(images), student.eval()(images))
    settings = ("STUDENT.WEIGHTS", cfg.STUDENT.WEIGHTS)
    with pytest.raises(SetupError, match="has a teacher's classifier already"):
        run("simkd", teacher_file, tmp_path / "other", *settings)
    content = torch.load(tmp_path / "run" / "model.pth", weights_only=True)
    content["reused_classifier"]["size"] = "large"
    torch.save(content, tmp_path / "damaged.pth")
    cfg.STUDENT.WEIGHTS = str(tmp_path / "damaged.pth")
    with pytest.raises(SetupError, match=r"STUDENT\.WEIGHTS: .*damaged\.pth' does not describe a student"):
        build_student(cfg, trainer.data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("SOLVER.OPTIMIZER", "adamw"), "DOT has two gradients, and no SOLVER.OPTIMIZER 'adamw'. Set it to 'sgd'"),
        (("SOLVER.CLIP_GRAD_NORM", 1.0), "no SOLVER.CLIP_GRAD_NORM 1.0. Set it to 0.0"),
        (("SOLVER.DOT_DELTA", 0.1), "SOLVER.MOMENTUM 0.9 plus and minus it must be from 0 to below 1"),
        (("DISTILLER", "none"), "DISTILLER 'none' has no gradient of a distillation"),
        (("DISTILLER", "mcld", "MCLD.CE", False), "DISTILLER 'mcld' has no cross-entropy"),
    ],
)
def test_what_dot_cannot_be_combined_with(settings, message, few_digits, teacher_file, tmp_path):
    with pytest.raises(SetupError, match=message):
        run("dot_kd", teacher_file, tmp_path / "run", *settings)


def test_dot_does_not_scale_losses():
    cfg = load_config(overrides=["DISTILLER", "kd", "SOLVER.DOT_DELTA", 0.1, "SOLVER.MIXED_PRECISION", "fp16"])
    with pytest.raises(SetupError, match=r"SOLVER\.DOT_DELTA 0\.1: DOT does not scale its losses"):
        build_optimizer(cfg, torch.nn.Linear(1, 1))


def test_configurations_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        cfg = load_config([f"{FILE}:{name}", PAIR])
        assert cfg == load_config([str(ROOT / "configs" / f"{FILE}:{name}"), PAIR])
        assert cfg == load_config([PAIR, f"{FILE}:{name}"])
