from __future__ import annotations

import pytest
import torch
from torch import nn

from classification.config import get_config
from classification.data.loaders import Batch
from classification.distillers import NetworkPair, build_distiller
from classification.distillers.hcd import HCD
from classification.models.protocol import ModelOutput
from kd_det.common.errors import SetupError
from kd_det.losses import standardize_logits

BATCH, CLASSES = 4, 5
STUDENT_STAGES, TEACHER_CHANNELS = (3, 6), 7


def output(channels, seed, size=BATCH):
    """A last stage of ``channels[-1]``, all with a graph."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [8 >> level for level in range(len(channels))]
    stages = [torch.randn(size, c, n, n, generator=generator) for c, n in zip(channels, sizes, strict=True)]
    stages = [stage.requires_grad_() for stage in stages]
    logits = torch.randn(size, CLASSES, generator=generator).requires_grad_()
    return ModelOutput(logits, stages[-1], stages[-1].mean((2, 3)), stages)


def student_output(seed=0, size=BATCH):
    return output(STUDENT_STAGES, seed, size)


def teacher_output(seed=1, size=BATCH):
    return output((TEACHER_CHANNELS,), seed, size)


def build(*settings, teacher_out=None):
    cfg = get_config()
    cfg.merge_from_list(["DISTILLER", "hcd", "TEACHER.NAME", "resnet14", *settings])
    pair = NetworkPair(nn.Identity(), nn.Identity(), student_output(size=2), teacher_out or teacher_output(size=2), 20)
    torch.manual_seed(0)
    return build_distiller(cfg, pair)


BATCH_OF_IMAGES = Batch(torch.zeros(BATCH, 3, 8, 8), torch.tensor([0, 4, 2, 2]), torch.arange(BATCH))


@pytest.mark.parametrize(("stage", "position"), [(-1, 1), (0, 0), (1, 1)])
def test_gives_the_weighted_terms_of_the_loss(stage, position):
    distiller = build("HCD.STAGE", stage, "HCD.WEIGHT", 0.5)
    assert isinstance(distiller, HCD)
    student_out, teacher_out = student_output(), teacher_output()
    terms = distiller(BATCH_OF_IMAGES, student_out, teacher_out)
    expected = distiller.loss(
        student_out.logits,
        teacher_out.logits,
        BATCH_OF_IMAGES.labels,
        student_out.stages[position],
        teacher_out.pooled,
    )
    assert terms == {f"loss_hcd_{name}": 0.5 * value for name, value in expected.items()}
    assert set(terms) == {"loss_hcd_kd", "loss_hcd_fused_kd", "loss_hcd_fused_ce", "loss_hcd_orthogonality"}
    assert distiller.uses_cross_entropy and distiller.needs_teacher


def test_settings_reach_the_loss():
    loss = build(
        "HCD.N", 3, "HCD.TEMPERATURE", 2.0, "HCD.CE_WEIGHT", 0.3, "HCD.ORTHOGONAL_WEIGHT", 7.0,
        "HCD.PROJECTOR_CHANNELS", 9, "HCD.STAGE", 0,
    ).loss  # fmt: skip
    assert (loss.n, loss.temperature, loss.ce_weight, loss.orthogonal_weight) == (3, 2.0, 0.3, 7.0)
    assert loss.projector.weight.shape == (9, 3, 1, 1)
    assert loss.mapper.weight.shape == (3 * CLASSES, 9 + TEACHER_CHANNELS)
    assert build().loss.projector.out_channels == TEACHER_CHANNELS


def test_gradients_reach_student_projector_and_mapper_and_never_the_teacher():
    distiller, student_out, teacher_out = build(), student_output(), teacher_output()
    sum(distiller(BATCH_OF_IMAGES, student_out, teacher_out).values()).backward()
    assert student_out.logits.grad.any() and student_out.map.grad.any()
    parameters = dict(distiller.named_parameters())
    assert len(parameters) == 4
    assert all(weight.grad.any() for weight in parameters.values())
    assert teacher_out.logits.grad is None and teacher_out.map.grad is None


def test_standardised_logits():
    distiller, student_out, teacher_out = build("STANDARDIZE", True), student_output(), teacher_output()
    terms = distiller(BATCH_OF_IMAGES, student_out, teacher_out)
    s, t = standardize_logits(student_out.logits), standardize_logits(teacher_out.logits)
    plain = build()
    assert terms == plain(BATCH_OF_IMAGES, student_out._replace(logits=s), teacher_out._replace(logits=t))
    assert terms != plain(BATCH_OF_IMAGES, student_out, teacher_out)


def test_one_sub_logit_has_no_orthogonality():
    terms = build("HCD.N", 1)(BATCH_OF_IMAGES, student_output(), teacher_output())
    assert terms["loss_hcd_orthogonality"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["HCD.STAGE", 2], "HCD.STAGE 2: the student has the stages 0 to 1"),
        (["HCD.STAGE", -2], "HCD.STAGE -2: the student has the stages 0 to 1"),
        (["HCD.N", 0], "HCD.N is 0; it must be a whole number, 1 or more"),
        (["HCD.PROJECTOR_CHANNELS", -1], "HCD.PROJECTOR_CHANNELS is -1"),
        (["HCD.TEMPERATURE", 0.0], "HCD.TEMPERATURE is 0.0"),
        (["HCD.WEIGHT", float("nan")], "HCD.WEIGHT is nan"),
        (["HCD.CE_WEIGHT", -1.0], "HCD.CE_WEIGHT is -1.0"),
        (["HCD.ORTHOGONAL_WEIGHT", -1.0], "HCD.ORTHOGONAL_WEIGHT is -1.0"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(SetupError, match=message):
        build(*settings)


@pytest.mark.parametrize("pooled", [None, torch.zeros(2, 7, 1)])
def test_a_teacher_without_a_pooled_feature(pooled):
    with pytest.raises(SetupError, match="'resnet14': HCD needs the teacher's pooled feature"):
        build(teacher_out=teacher_output(size=2)._replace(pooled=pooled))
