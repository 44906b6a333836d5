"""SOLVER.AMP.ENABLED on a CPU: bfloat16 for the student, and a warning where that is slower."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.utils.events import EventStorage

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.engine import mixed_precision
from kd_det.engine.mixed_precision import check_mixed_precision
from tests.modeling.test_any_rcnn import KEYPOINTS, KINDS, distilling, keypoint_batch
from tests.tiny import batch, build, loss_gradients, student_config, teacher_files

AMP = ("SOLVER.AMP.ENABLED", True)


@pytest.fixture
def bfloat16(monkeypatch):
    """``bfloat16(faster)``: what the check of this CPU says."""

    def says(faster):
        monkeypatch.setattr(mixed_precision, "bfloat16_is_faster", lambda device: (faster, "it was measured"))

    return says


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


def test_a_run_trains_and_resumes(train, tmp_path, bfloat16):
    bfloat16(True)
    ended = train(*AMP, "SOLVER.MAX_ITER", 2)
    assert ended.code == 0, ended.error
    assert "slows this run down" not in ended.log
    path = tmp_path / "output" / "model_final.pth"
    saved = torch.load(path, weights_only=True)["model"]
    assert all(value.dtype != torch.bfloat16 for value in saved.values())
    ended = train("--resume", *AMP, "SOLVER.MAX_ITER", 3)
    assert ended.code == 0, ended.error
    after = torch.load(path, weights_only=True)["model"]
    assert any(not torch.equal(value, after[name]) for name, value in saved.items())


def test_the_student_computes_in_bfloat16_while_it_trains(train, tmp_path, bfloat16, monkeypatch):
    bfloat16(True)
    seen = []
    forward = torch.nn.Linear.forward

    def spied(self, given):
        result = forward(self, given)
        seen.append((result.dtype, result.requires_grad))
        return result

    monkeypatch.setattr(torch.nn.Linear, "forward", spied)
    assert train(*AMP, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", "('stage_val',)", "TEST.EVAL_PERIOD", 1).code == 0
    student = {dtype for dtype, trained in seen if trained}
    others = {dtype for dtype, trained in seen if not trained}  # the teacher, and the student in evaluation
    assert student == {torch.bfloat16} and others == {torch.float32}


def test_a_cpu_on_which_it_is_slower_is_warned_about(train, bfloat16):
    bfloat16(False)
    ended = train(*AMP, "SOLVER.MAX_ITER", 1)
    assert ended.code == 0, ended.error
    assert "SOLVER.AMP.ENABLED True slows this run down, because it was measured. Set it to False." in ended.log


def test_other_devices_are_refused():
    cfg = load_config("", ["SOLVER.AMP.ENABLED", True], device="mps")
    with pytest.raises(SetupError, match=r"SOLVER\.AMP\.ENABLED is True with MODEL\.DEVICE 'mps'"):
        check_mixed_precision(cfg)


@pytest.mark.parametrize("extra", [[], ["MODEL.MASK_ON", True], KEYPOINTS], ids=["box", "mask", "keypoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_on_the_cpu_trains_every_kind_of_head(tmp_path, kind, extra):
    if kind == "c4" and extra is KEYPOINTS:
        pytest.skip("Detectron2's C4 heads know no keypoints")
    files = teacher_files(tmp_path, *KINDS[kind])
    terms = ("dkd", "sdd", "pkd") if kind != "c4" else ("dkd", "sdd")
    model = build(student_config(files, *distilling(KINDS[kind]), *extra, terms=terms))
    inputs = keypoint_batch() if extra is KEYPOINTS else batch()
    with EventStorage(0):
        expected, _ = loss_gradients(model, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            losses, gradients = loss_gradients(model, inputs)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=0.1, atol=0.02, msg=name)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in gradients.values())
