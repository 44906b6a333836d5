from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.classification.conftest import ROOT, SHORT
from tests.classification.forked import train
from tests.tools.commands import run_door


@pytest.fixture(scope="session")
def outputs(tmp_path_factory, teacher_file):
    """A working folder whose output/ has two short runs on the digits: "tiny/kd" and "tiny/dkd", with one teacher."""
    folder = tmp_path_factory.mktemp("analysis")
    for method in ("kd", "dkd"):
        settings = ["DISTILLER", method, "TEACHER.NAME", "resnet14", "TEACHER.WEIGHTS", teacher_file, *SHORT]
        result = train(folder, *settings, "SOLVER.EPOCHS", 1, "OUTPUT_DIR", f"output/tiny/{method}")
        assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture
def tool(monkeypatch):
    """``tool(folder, name, *arguments)`` does what ``tools/<name>.py`` does in ``folder``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes that it starts

    def run(folder: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(folder)
        return run_door(name, *arguments)

    return run


@pytest.fixture
def analyse(tool, outputs):
    """``analyse(name, *arguments)`` does what ``tools/<name>.py`` does in the folder of ``outputs``."""
    return partial(tool, outputs)
