"""kd_det.losses is pure torch: it imports where nothing else is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

BLOCKED = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
NOT_NEEDED = {
    "detectron2",
    "torchvision",
    "fvcore",
    "iopath",
    "yacs",
    "PIL",
    "cv2",
    "pycocotools",
    "matplotlib",
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    blocked = BLOCKED.format(blocked=NOT_NEEDED)
    return subprocess.run([sys.executable, "-c", blocked + code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("module", sorted(NOT_NEEDED))
def test_the_block_works(module):
    result = run(f"import {module}")
    assert f"No module named '{module}'" in result.stderr


def test_the_losses_run_with_torch_alone():
    result = run("""
import torch
from kd_det.losses import dkd_loss, kd_loss
s, t = torch.randn(2, 4, 5)
print(float(dkd_loss(s, t, torch.arange(4))) >= 0, float(kd_loss(s, t)) >= 0)
""")
    assert result.stdout.split() == ["True", "True"], result.stderr


def test_kd_det_itself_imports_next_to_nothing():
    result = run("""
import sys
import kd_det
print(kd_det.__version__, "torch" in sys.modules, "detectron2" in sys.modules)
""")
    assert result.stdout.split() == ["0.1.0", "False", "False"], result.stderr
