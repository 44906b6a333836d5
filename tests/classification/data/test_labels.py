"""Label noise, and the choice of samples by confidence."""

from __future__ import annotations

import pytest
import torch

from classification.data import build_data, rank_by_confidence
from classification.data.labels import add_label_noise
from classification.step import TrainingStep
from kd_det.common.errors import SetupError
from tests.classification.data.layouts import config
from tests.classification.distillers.tiny import Case


@pytest.mark.parametrize(("rate", "changed"), [(0.0, 0), (0.1, 100), (0.3, 301), (0.999, 1002)])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_given_share_of_labels_changes_class(rate, changed, classes):
    labels = torch.arange(1003) % classes
    noisy = add_label_noise(labels, rate, classes, seed=0)
    assert (noisy != labels).sum() == changed
    assert noisy.min() >= 0 and noisy.max() < classes and noisy.dtype == torch.int64
    assert torch.equal(labels, torch.arange(1003) % classes)


def test_noise_is_uniform_over_the_other_classes():
    noisy = add_label_noise(torch.full((9000,), 3), 0.9, 10, seed=1)
    counts = torch.bincount(noisy, minlength=10)
    assert counts[3] == 900
    others = torch.cat([counts[:3], counts[4:]])
    assert ((others - 900) ** 2 / 900).sum() < 30  # chi squared, 8 degrees of freedom: 26 is one in a thousand


def test_noise_is_of_its_own_seed_and_of_training_only():
    clean, noisy, other, same = (
        build_data(config("DATA.LABEL_NOISE", rate, "DATA.LABEL_NOISE_SEED", noise_seed, "SEED", seed), "cpu")
        for rate, noise_seed, seed in ((0.0, 0, 0), (0.2, 0, 0), (0.2, 1, 0), (0.2, 0, 1))
    )
    assert torch.equal(noisy.train.labels, same.train.labels)  # a student of another SEED sees its teacher's labels
    assert (noisy.train.labels != clean.train.labels).sum() == round(1437 * 0.2)
    assert not torch.equal(noisy.train.labels, other.train.labels)
    again = build_data(config("DATA.LABEL_NOISE", 0.2), "cpu", 1, 2)
    assert torch.equal(noisy.train.labels, again.train.labels)
    for epoch in (0, 1):
        for batch in noisy.train.epoch(epoch):
            assert torch.equal(batch.labels, noisy.train.labels[batch.indices])
    for a, b in zip(clean.val, noisy.val, strict=True):
        assert torch.equal(a.labels, b.labels)


def test_the_most_confident_come_first():
    probabilities = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert rank_by_confidence(probabilities, (0.0, 0.5)).tolist() == [False, True, False, True]
    assert rank_by_confidence(probabilities, (0.5, 1.0)).tolist() == [True, False, True, False]
    assert rank_by_confidence(probabilities, (0.25, 0.5)).tolist() == [False, False, False, True]
    assert rank_by_confidence(probabilities, (0.0, 1.0)).all()


@pytest.mark.parametrize("count", [1, 7, 100])
def test_ranges_that_join_share_nothing(count):
    probabilities = torch.ones(count)  # ties too
    parts = [rank_by_confidence(probabilities, (a / 5, (a + 1) / 5)) for a in range(5)]
    assert torch.equal(torch.stack(parts).sum(0), torch.ones(count, dtype=torch.int64))


def test_invalid_ranges_and_probabilities():
    for wrong in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.5), (float("nan"), 1.0)):
        with pytest.raises(SetupError, match=r"DATA\.CONFIDENCE_RANGE"):
            rank_by_confidence(torch.rand(4), wrong)
    with pytest.raises(ValueError, match="nan"):
        rank_by_confidence(torch.tensor([0.1, float("nan")]), (0.0, 0.5))


def test_a_half_has_the_weight_of_the_whole_beside_the_cross_entropy():
    """Its terms are means over its samples: halves of one batch average to the batch's term, and neither is halved."""
    case = Case("dkd_nckd", size=6)
    step = TrainingStep(case.student, case.distiller, ce_weight=1.0)

    def losses(rows):
        return step(case.batch, case.teacher_out, rows, 1.0)[0]

    whole, first, second = (losses(rows) for rows in (None, torch.arange(3), torch.arange(3, 6)))
    both = (first["loss_dkd_nckd"] + second["loss_dkd_nckd"]) / 2
    torch.testing.assert_close(both, whole["loss_dkd_nckd"], rtol=1e-9, atol=0)
    assert first["loss_ce"] == second["loss_ce"] == whole["loss_ce"]
