"""The warning of a term that is many times as large as the detector's own losses."""

from __future__ import annotations

import pytest
import torch
from detectron2.utils import comm

from kd_det.modeling.balance import ITERATIONS, BalanceWatch
from tests.tiny import batch, build, student_config, teacher_files


def watched(losses, weights=None, own=1.0):
    """A watch that has seen as many iterations as there are in ``losses`` of "reviewkd", beside a "dkd" of 9."""
    watch = BalanceWatch(weights or {"dkd": 1.0, "reviewkd": 2.0})
    for value in losses:
        detector = {"loss_cls": torch.tensor(0.25 * own), "loss_box_reg": torch.tensor(0.75 * own)}
        parts = {"dkd": {"loss_dkd": torch.tensor(9.0 * own)}, "reviewkd": {"loss_reviewkd": torch.tensor(value)}}
        watch.note(detector, {name: parts[name] for name in watch.weights})
    return watch


def test_one_warning_names_key_and_remedy(caplog):
    watched([41.0] * 3 * ITERATIONS)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    text = record.getMessage()
    assert "'reviewkd' is 41 on average over the first 20 iterations, 41 times the sum of the detector's own" in text
    assert "Lower KD.REVIEWKD.WEIGHT from 2 to 0.05" in text and "dkd'" not in text


@pytest.mark.parametrize(
    "losses", [[41.0] * (ITERATIONS - 1), [9.9] * ITERATIONS, [100.0] + [5.0] * (ITERATIONS - 1), [1.0] * 30 + [99.0]]
)
def test_a_term_that_is_not_too_large_on_average_is_not_reported(caplog, losses):
    watched(losses)
    assert not caplog.records


def test_a_term_without_a_weight_and_a_detector_without_losses(caplog):
    watched([41.0] * ITERATIONS, {"reviewkd": None})
    assert "Give it a smaller weight, or remove it from KD.TERMS." in caplog.text
    caplog.clear()
    watched([41.0] * ITERATIONS, own=0.0)
    assert not caplog.records


def test_the_main_process_alone_warns(caplog, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    watched([41.0] * ITERATIONS)
    assert not caplog.records


def test_the_losses_are_read_once():
    class Read(torch.Tensor):
        count = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__float__):
                cls.count += 1
            return super().__torch_function__(function, types, args, kwargs or {})

    watch = BalanceWatch({"reviewkd": 1.0})
    for _ in range(2 * ITERATIONS):
        loss = torch.tensor(1.0).as_subclass(Read)
        watch.note({"loss_cls": loss}, {"reviewkd": {"loss_reviewkd": loss}})
    assert Read.count == 1


def test_training_steps_are_watched(tmp_path, caplog):
    model = build(student_config(teacher_files(tmp_path), "KD.FITNET.WEIGHT", 3.0, terms=("fitnet",)))
    inputs = batch(1)
    model.eval()(inputs)
    model.train()
    for _ in range(ITERATIONS):
        assert "KD.FITNET.WEIGHT" not in caplog.text
        model(inputs)
    assert caplog.text.count("Lower KD.FITNET.WEIGHT from 3 to ") == 1
