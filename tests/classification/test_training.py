"""The command line on the embedded digits: what a run writes, and that it learns."""

from __future__ import annotations

import json

import pytest
import torch

from classification import trainer
from classification.config import load_config
from classification.data import build
from classification.data.small_images import ImagesInMemory, read_digits
from classification.models import create_model
from classification.states import last_state, read_progress
from tests.classification.conftest import outcome


def test_a_run_leaves_what_people_and_tables_need(classify, distil, tmp_path):
    result = classify(*distil, "DISTILLER", "dkd", "WARMUP_EPOCHS", 2, "OUTPUT_DIR", "run")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "top-1" in result.stdout
    state, history, figures = outcome(tmp_path / "run")
    model = create_model("resnet8", 10)
    model.load_state_dict(state, strict=True)
    assert [record["epoch"] for record in history] == [1, 2] and history[1]["lr"] == pytest.approx(0.005)
    assert {"loss_ce", "loss_dkd", "train_top1", "top1", "top5"} <= history[0].keys()
    # Of 24 steps the accuracy is noise: it depends on the seed, and on the processor's rounding.
    assert figures["last_top1"] == history[-1]["top1"] and history[1]["loss_ce"] < history[0]["loss_ce"]
    assert figures["best_top1"] == max(record["top1"] for record in history)
    assert figures["seed"] == 0 and figures["config"]["DISTILLER"] == "dkd" and figures["extra_parameters"] == 0
    assert figures["seconds_per_epoch"] > 0 and figures["peak_memory_mib"] > 50 and figures["versions"]["torch"]
    assert any((tmp_path / "run").rglob("events.out.tfevents*"))

    evaluated = classify("--eval-only", *distil, "OUTPUT_DIR", "run")
    assert json.loads(evaluated.stdout.splitlines()[-1])["top1"] == pytest.approx(figures["last_top1"], abs=1e-9)

    again = classify("--resume", *distil, "DISTILLER", "dkd", "WARMUP_EPOCHS", 2, "OUTPUT_DIR", "run")
    assert again.returncode == 0 and outcome(tmp_path / "run")[1] == history
    assert not (tmp_path / "run" / "model_best.pth").exists()


def test_the_best_epochs_student_is_kept_only_if_asked_for(monkeypatch, tmp_path):
    content = read_digits()
    few = [ImagesInMemory(split.images[:40], split.labels[:40]) for split in (content.train, content.val)]
    monkeypatch.setitem(build.IN_MEMORY, "digits", lambda root: content._replace(train=few[0], val=few[1]))
    accuracies = iter([50.0, 60.0, 60.0, 40.0] * 2)
    measured = trainer.measure_accuracy

    def measure(*given):
        return measured(*given) | {"top1": next(accuracies)}

    monkeypatch.setattr(trainer, "measure_accuracy", measure)
    for kept in (True, False):
        folder = tmp_path / str(kept)
        settings = ["DATA.BATCH_SIZE", 20, "SOLVER.EPOCHS", 4, "SOLVER.SAVE_BEST", kept, "OUTPUT_DIR", str(folder)]
        cfg = load_config(overrides=settings)
        figures = trainer.Trainer(cfg, trainer.build_accelerator(cfg), resume=False).train()
        assert (figures["last_top1"], figures["best_top1"]) == (40.0, 60.0)
        assert (folder / "model_best.pth").exists() == kept
    files = [torch.load(tmp_path / "True" / name, weights_only=True) for name in ("model_best.pth", "model.pth")]
    # Of two epochs that are equally good, the first one.
    assert [(file["epoch"], file["top1"]) for file in files] == [(2, 60.0), (4, 40.0)]


def test_what_a_method_adds_is_no_part_of_the_student(classify, distil, tmp_path):
    settings = [*distil, "SOLVER.EPOCHS", 1, "DISTILLER", "fitnet", "OUTPUT_DIR", "run"]
    assert classify(*settings).returncode == 0
    state, _, figures = outcome(tmp_path / "run")
    assert state.keys() == create_model("resnet8", 10).state_dict().keys()
    assert figures["extra_parameters"] > 0


def test_accumulated_micro_batches_are_one_step(classify, distil, tmp_path):
    """Two of 10 samples take as many steps as one of 20."""
    common = [*distil, "SOLVER.EPOCHS", 1, "SOLVER.CHECKPOINT_PERIOD", 0, "DISTILLER", "kd"]
    assert classify(*common, "OUTPUT_DIR", "whole").returncode == 0
    assert classify(*common, "DATA.BATCH_SIZE", 10, "SOLVER.ACCUMULATE", 2, "OUTPUT_DIR", "parts").returncode == 0
    states = [last_state(tmp_path / name) for name in ("whole", "parts")]
    assert [read_progress(state)["progress"]["steps"] for state in states] == [12, 12]


def test_distilling_the_confident_half(classify, distil, tmp_path):
    settings = [*distil, "SOLVER.EPOCHS", 1, "DISTILLER", "dkd_nckd"]
    half = classify(*settings, "DATA.CONFIDENCE_RANGE", "(0.0, 0.5)", "OUTPUT_DIR", "half")
    assert half.returncode == 0, half.stderr[-3000:]
    assert classify(*settings, "OUTPUT_DIR", "all").returncode == 0
    losses = [outcome(tmp_path / name)[1][0]["loss_dkd_nckd"] for name in ("half", "all")]
    assert losses[0] > 0 and losses[0] != losses[1]


def test_mixed_precision_and_channels_last(classify, distil, tmp_path):
    """The losses of an epoch are those of float32, but for bfloat16's rounding: 8 bits of a number."""
    settings = [*distil, "SOLVER.EPOCHS", 1, "SOLVER.LR", 0.001, "DISTILLER", "sdd", "SDD.SCALES", "(1, 2)"]
    mixed = ["SOLVER.MIXED_PRECISION", "bf16", "SOLVER.CHANNELS_LAST", "True"]
    for name, options in (("full", []), ("mixed", mixed)):
        result = classify(*settings, *options, "OUTPUT_DIR", name)
        assert result.returncode == 0, result.stderr[-3000:]
    (_, (full,), _), (state, (history,), _) = (outcome(tmp_path / name) for name in ("full", "mixed"))
    for loss in ("loss_ce", "loss_sdd"):
        assert history[loss] == pytest.approx(full[loss], rel=0.03) and history[loss] != full[loss]
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for value in state.values()} <= {torch.float32, torch.int64}


def test_a_non_finite_loss_stops_the_run(classify, distil):
    result = classify(*distil, "DISTILLER", "kd", "KD.WEIGHT", "1e38", "SOLVER.LR", "1e6", "OUTPUT_DIR", "run")
    assert result.returncode == 1
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: {'loss_") and "is not finite in epoch 1, step" in line and "samples [" in line
