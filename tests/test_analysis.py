"""The gap between the target's logit and the others', and the beta from it, with values by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kd_det.common
from kd_det.common.beta import ANCHORS, confidence_gap, suggested_beta


def test_gap_by_hand():
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.5, 4.0, 2.0], [1.0, 1.0, 0.0], [-5.0, -7.0, -6.5]])
    gap = confidence_gap(logits, torch.tensor([0, 2, 1, 1]))
    assert gap.tolist() == [2.0, -2.0, 0.0, -2.0]


def test_two_classes_and_no_rows():
    assert confidence_gap(torch.tensor([[1.0, 4.0]]), torch.tensor([0])).tolist() == [-3.0]
    assert confidence_gap(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(("given", "wider"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_dtype(given, wider):
    gap = confidence_gap(torch.tensor([[3.0, 1.0]], dtype=given), torch.tensor([0]))
    assert gap.dtype == wider and gap.item() == 2


def test_the_logits_are_left_alone():
    logits = torch.tensor([[3.0, 1.0, -2.0]])
    confidence_gap(logits, torch.tensor([0]))
    assert logits.tolist() == [[3.0, 1.0, -2.0]]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "logits must be"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), "logits must be"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "logits must be"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "labels must be int64"),
        (torch.zeros(3, 2), torch.zeros(3), "labels must be int64"),
        (torch.zeros(1, 2), torch.tensor([2]), "from 0 to 1"),
        (torch.zeros(1, 2), torch.tensor([-1]), "from 0 to 1"),
    ],
)
def test_bad_arguments(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        confidence_gap(logits, labels)


def test_beta_at_between_and_beyond_the_anchors():
    assert [suggested_beta(gap) for gap, _ in ANCHORS] == [beta for _, beta in ANCHORS] == [2, 2, 6, 6, 8, 8]
    assert [gap for gap, _ in ANCHORS] == [5.36, 6.73, 7.24, 8.25, 8.40, 8.53]  # table A.2
    assert suggested_beta(6.0) == 2.0 and suggested_beta(6.985) == pytest.approx(4.0) and suggested_beta(7.7) == 6.0
    assert suggested_beta(-3.0) == 2.0 and suggested_beta(100.0) == 8.0
    betas = [suggested_beta(gap / 10) for gap in range(120)]
    assert betas == sorted(betas)  # the surer the teacher, the larger


def test_anchors_of_ones_own():
    assert suggested_beta(1.5, [(1.0, 0.1), (2.0, 0.3)]) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="ascending order"):
        suggested_beta(1.5, [(2.0, 0.1), (1.0, 0.3)])
    with pytest.raises(ValueError, match="finite"):
        suggested_beta(math.nan)


def test_what_is_slow_is_imported_on_first_use():
    """Neither Detectron2 nor matplotlib for any module of kd_det.common; not even torch for those of the studies."""
    names = sorted(path.stem for path in Path(kd_det.common.__path__[0]).glob("*.py"))
    light = ["environment", "figures", "files", "processes", "run_steps", "tables"]
    code = f"""
import importlib, sys
for name in {light}:
    importlib.import_module("kd_det.common." + name)
assert "torch" not in sys.modules
for name in {names}:
    importlib.import_module("kd_det.common." + name)
print([name for name in ("detectron2", "matplotlib") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
