from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.classification.forked import train

ROOT = Path(__file__).parent.parent.parent
# 240 scans (see ``forked.FEW``) in 12 steps of an epoch: a second on one core.
SHORT = ["DATA.BATCH_SIZE", 20, "SOLVER.EPOCHS", 2, "SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", 5]


@pytest.fixture
def classify(tmp_path):
    """``classify(*arguments)`` runs ``python -m classification.train`` in ``tmp_path``."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return train(tmp_path, *arguments)

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
    result = train(folder, *settings, few=False)
    assert result.returncode == 0, result.stderr[-3000:]
    weights = folder / "teacher" / "model.pth"
    assert torch.load(weights, weights_only=True)["top1"] > 80
    return weights


@pytest.fixture(scope="session")
def distil(teacher_file):
    """The settings of a short run under that teacher."""
    return ["TEACHER.NAME", "resnet14", "TEACHER.WEIGHTS", str(teacher_file), *SHORT]


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict], dict]:
    """A run's student, history and result."""
    state = torch.load(folder / "model.pth", weights_only=True)["model"]
    history = json.loads((folder / "history.json").read_text())
    return state, history, json.loads((folder / "result.json").read_text())
