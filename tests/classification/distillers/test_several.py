"""Several methods at once, ``DISTILLER: sdd+reviewkd``."""

from __future__ import annotations

import pytest
import torch

from classification.config import load_config
from classification.distillers import distiller_class
from kd_det.common.errors import SetupError
from tests.classification.distillers.tiny import Case


def test_the_losses_of_all_with_their_own_weights():
    settings = ("SDD.WEIGHT", 2.0, "REVIEWKD.WEIGHT", 3.0, "SDD.SCALES", (1, 2))
    case = Case("sdd+reviewkd", *settings)
    sdd, reviewkd = Case("sdd", *settings), Case("reviewkd", *settings)
    reviewkd.distiller.load_state_dict(case.distiller.parts["reviewkd"].state_dict())
    losses = case.losses()
    torch.testing.assert_close(losses, sdd.losses() | reviewkd.losses(), rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(sum(losses.values()), case.student.stages[0].weight)
    single = [torch.autograd.grad(sum(c.losses().values()), c.student.stages[0].weight)[0] for c in (sdd, reviewkd)]
    torch.testing.assert_close(gradients[0], single[0] + single[1], rtol=1e-10, atol=1e-14)
    assert {name.split(".")[1] for name, _ in case.distiller.named_parameters()} == {"reviewkd"}


def test_settings_for_a_part_reach_that_part_alone():
    case = Case("kd+fitnet", "STANDARDIZE", True)
    assert case.losses()["loss_kd"].item() == Case("kd", "STANDARDIZE", True).losses()["loss_kd"].item()
    assert case.distiller.uses_cross_entropy and not Case("kd+mcld", "DATA.BATCH_SIZE", 4).distiller.uses_cross_entropy
    case = Case("mlkd+kd", "DATA.STRONG_VIEW", True)
    strong = case.distiller(case.batch, case.student_out, case.teacher_out, strong=True)
    assert list(strong) == ["loss_mlkd_strong"]
    case = Case("ctkd+sp")
    case.distiller.start_epoch(5)
    assert case.distiller.parts["ctkd"].reversal > 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sdd+sdd", r"DISTILLER 'sdd\+sdd': 'sdd' is listed twice; leave one out"),
        ("sdd+revewkd", "there is no distiller 'revewkd'. Did you mean 'reviewkd'?"),
        ("sdd+", "there is no distiller ''"),
        ("kd+none", "'none' is a method without a teacher; leave it out"),
        ("kd+simkd", "the student of 'simkd' has no classifier"),
        ("at+rkd", "STANDARDIZE True: DISTILLER 'at\\+rkd' has no loss on logits"),
    ],
)
def test_what_cannot_be_combined(name, message):
    with pytest.raises(SetupError, match=message):
        Case(name, *(["STANDARDIZE", True] if name == "at+rkd" else []))


def test_what_is_known_of_a_combination_before_it_is_built():
    assert distiller_class("fitnet+kd").compares_logits and not distiller_class("fitnet+rkd").compares_logits
    assert distiller_class("fitnet+kd").needs_teacher and distiller_class("kd+mlkd").takes_strong_view


def test_the_methods_sections_of_all_parts_are_used(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "METHODS: {sdd_dkd: {WARMUP_EPOCHS: 30}, reviewkd: {WARMUP_EPOCHS: 20, REVIEWKD: {WEIGHT: 5.0}},"
        " sdd_dkd+at: {AT: {WEIGHT: 2.0}}, lskd_kd: {KD: {WEIGHT: 9.0}}, dot_kd: {KD: {TEMPERATURE: 3.0}}}"
    )
    with pytest.raises(SetupError, match="METHODS sets WARMUP_EPOCHS to 30 for 'sdd' and to 20 for 'reviewkd'"):
        load_config(str(file), ["DISTILLER", "sdd+reviewkd"])
    cfg = load_config(str(file), ["DISTILLER", "sdd+reviewkd", "WARMUP_EPOCHS", 25, "STUDENT.NAME", "resnet8"])
    assert (cfg.WARMUP_EPOCHS, cfg.REVIEWKD.WEIGHT) == (25, 5.0)
    assert cfg.OUTPUT_DIR == "output/digits/sdd_dkd+reviewkd_resnet8"
    cfg = load_config(str(file), ["DISTILLER", "sdd+at"])
    assert (cfg.WARMUP_EPOCHS, cfg.AT.WEIGHT) == (30, 2.0)
    cfg = load_config(str(file), ["DISTILLER", "kd", "STANDARDIZE", True])
    assert (cfg.KD.WEIGHT, cfg.KD.TEMPERATURE) == (9.0, 4.0) and "/lskd_kd_" in cfg.OUTPUT_DIR
    cfg = load_config(str(file), ["DISTILLER", "kd", "SOLVER.DOT_DELTA", 0.05])
    assert (cfg.KD.WEIGHT, cfg.KD.TEMPERATURE) == (1.0, 3.0) and "/dot_kd_" in cfg.OUTPUT_DIR


def test_a_section_of_a_file(tmp_path):
    assert load_config("cifar100/methods.yaml:crd").DISTILLER == "crd"
    for name, message in (("crq", "no section 'crq'. Did you mean 'crd'?"), ("", "no key")):
        with pytest.raises(SetupError, match=message):
            load_config(f"cifar100/methods.yaml:{name}".rstrip(":"))
