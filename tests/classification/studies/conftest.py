from __future__ import annotations

import pytest

from tests.classification.conftest import SHORT
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
def analyse(outputs, monkeypatch):
    """``analyse(tool, *arguments)`` does what ``tools/<tool>.py`` does, in that folder."""
    monkeypatch.chdir(outputs)
    return run_door
