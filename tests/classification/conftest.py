from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
# 1,437 scans in 12 steps of an epoch: seconds on one core.
SHORT = ["DATA.BATCH_SIZE", 128, "SOLVER.EPOCHS", 2, "SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", 5]


@pytest.fixture
def classify(tmp_path):
    """``classify(*arguments)`` runs ``python -m classification.train`` in ``tmp_path``; ``module`` another one."""

    def run(*arguments: object, module: str = "classification.train") -> subprocess.CompletedProcess[str]:
        return command([sys.executable, "-m", module, *map(str, arguments)], tmp_path)

    return run


def command(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command line in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """A resnet14 trained on the digits for a few epochs, by the command line: right about most of them."""
    folder = tmp_path_factory.mktemp("classification_teacher")
    settings = ["STUDENT.NAME", "resnet14", *SHORT, "SOLVER.EPOCHS", 5, "SOLVER.SCHEDULE", "cosine"]
    settings += ["DATA.BATCH_SIZE", 64, "OUTPUT_DIR", "teacher"]
    result = command([sys.executable, "-m", "classification.train", *map(str, settings)], folder)
    assert result.returncode == 0, result.stderr[-3000:]
    weights = folder / "teacher" / "model.pth"
    assert torch.load(weights, weights_only=True)["top1"] > 80
    return weights


@pytest.fixture
def distil(teacher_file):
    """The settings of a short run under that teacher."""
    return ["TEACHER.NAME", "resnet14", "TEACHER.WEIGHTS", str(teacher_file), *SHORT]


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict], dict]:
    """A run's student, history and result."""
    state = torch.load(folder / "model.pth", weights_only=True)["model"]
    history = json.loads((folder / "history.json").read_text())
    return state, history, json.loads((folder / "result.json").read_text())
