from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from classification.config import get_config
from classification.data.loaders import Batch
from classification.distillers import NetworkPair, build_distiller
from classification.distillers.mcld import MCLD
from classification.models.protocol import ModelOutput
from kd_det.common.errors import SetupError
from kd_det.losses import MCLDLoss, standardize_logits

SAMPLES, BATCH, CLASSES = 20, 6, 5
TERMS = ("instance", "sample", "category")


def output(seed, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    feature_map = torch.randn(size, 3, 2, 2, generator=generator)
    logits = torch.randn(size, CLASSES, generator=generator)
    return ModelOutput(logits.requires_grad_(), feature_map, feature_map.mean((2, 3)), [feature_map])


def build(*settings, samples=SAMPLES):
    cfg = get_config()
    cfg.merge_from_list(["DISTILLER", "mcld", "DATA.BATCH_SIZE", BATCH, *settings])
    return build_distiller(cfg, NetworkPair(nn.Identity(), nn.Identity(), output(0, 2), output(1, 2), samples))


def batch(step):
    indices = torch.arange(BATCH) + step * BATCH
    return Batch(torch.zeros(BATCH, 3, 8, 8), indices % 3, indices % SAMPLES)


def test_gives_the_weighted_terms_of_the_loss_step_by_step():
    distiller, loss = (
        build("MCLD.WEIGHT", 0.5, "MCLD.TEMPERATURE", 0.3, "MCLD.QUEUE", 8),
        MCLDLoss(5, 8, temperature=0.3),
    )
    assert isinstance(distiller, MCLD)
    for step in range(4):
        samples, student_out, teacher_out = batch(step), output(2 * step), output(2 * step + 1)
        terms = distiller(samples, student_out, teacher_out)
        expected = loss(student_out.logits, teacher_out.logits, samples.labels, samples.indices)
        assert terms == {f"loss_mcld_{name}": 0.5 * expected[name] for name in TERMS}
    assert terms["loss_mcld_instance"] > 0


def test_standardised_logits():
    student_out, teacher_out = output(0), output(1)
    terms = build("STANDARDIZE", True)(batch(0), student_out, teacher_out)
    s, t = standardize_logits(student_out.logits), standardize_logits(teacher_out.logits)
    expected = build()(batch(0), student_out._replace(logits=s), teacher_out._replace(logits=t))
    assert terms == expected
    assert terms != build()(batch(0), student_out, teacher_out)


@pytest.mark.parametrize("on", [on for count in (1, 2, 3) for on in itertools.combinations(TERMS, count)])
def test_ablations(on):
    switches = [(f"MCLD.{name.upper()}", name in on) for name in TERMS]
    distiller = build(*itertools.chain.from_iterable(switches))
    assert set(distiller(batch(0), output(0), output(1))) == {f"loss_mcld_{name}" for name in on}


def test_without_a_term_the_student_is_a_plain_one():
    """The first row of the paper's table 7."""
    plain = build(*itertools.chain.from_iterable((f"MCLD.{name.upper()}", False) for name in TERMS))
    assert plain(batch(0), output(0), output(1)) == {} and plain.uses_cross_entropy
    assert not list(plain.state_dict())


def test_the_category_terms_normalisation():
    student_out, teacher_out = output(0), output(1)
    names = ["counts", "supcon"]
    counts, supcon = (build("MCLD.CATEGORY_NORM", name)(batch(0), student_out, teacher_out) for name in names)
    assert counts == build()(batch(0), student_out, teacher_out)
    assert counts["loss_mcld_category"] != supcon["loss_mcld_category"]


def test_the_queue_is_as_large_as_the_training_set_unless_told():
    assert build().loss.logits.shape == (SAMPLES, CLASSES)
    assert build("MCLD.QUEUE", 7).loss.logits.shape == (7, CLASSES)
    assert not list(build().parameters())


def test_the_queue_is_resumed():
    distiller, resumed = build(), build()
    distiller(batch(0), output(0), output(1))
    resumed.load_state_dict(distiller.state_dict())
    student_out, teacher_out = output(2), output(3)
    assert resumed(batch(1), student_out, teacher_out) == distiller(batch(1), student_out, teacher_out)


def test_the_cross_entropy_is_off_unless_told():
    assert not build().uses_cross_entropy
    assert build("MCLD.CE", True).uses_cross_entropy


@pytest.mark.parametrize(
    ("settings", "samples", "message"),
    [
        (["MCLD.QUEUE", 21], SAMPLES, "MCLD.QUEUE 21: it must be .* at most the number of training samples, 20"),
        (["MCLD.QUEUE", -1], SAMPLES, "MCLD.QUEUE -1"),
        (["MCLD.QUEUE", 5], SAMPLES, "MCLD.QUEUE 5: a queue of 5 cannot hold a batch of DATA.BATCH_SIZE, 6"),
        ([], 4, "MCLD.QUEUE 0: a queue of 4 cannot hold a batch of DATA.BATCH_SIZE, 6"),
        (["MCLD.TEMPERATURE", 0.0], SAMPLES, "MCLD.TEMPERATURE is 0.0"),
        (["MCLD.WEIGHT", -1.0], SAMPLES, "MCLD.WEIGHT is -1.0"),
        (["MCLD.CATEGORY_NORM", "count"], SAMPLES, "MCLD.CATEGORY_NORM is 'count'; .* Did you mean 'counts'"),
    ],
)
def test_bad_input(settings, samples, message):
    with pytest.raises(SetupError, match=message):
        build(*settings, samples=samples)


def test_without_the_instance_term_no_queue_is_checked_or_kept():
    distiller = build("MCLD.INSTANCE", False, "MCLD.QUEUE", 5)
    assert distiller.loss.logits.numel() == 0
