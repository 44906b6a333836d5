from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.classification.conftest import ROOT, SHORT
from tests.classification.forked import train


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
def tool(monkeypatch, capfd):
    """``tool(folder, name, *arguments)`` runs ``tools/<name>.py`` in ``folder``, without a process of its own."""

    def run(folder: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            importlib.import_module(name).main()
        except SystemExit as end:  # sys.exit takes None, a code, or a text for stderr and code 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        stdout, stderr = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, code, stdout, stderr)

    return run


@pytest.fixture
def analyse(tool, outputs):
    """``analyse(name, *arguments)`` runs ``tools/<name>.py`` in the folder of ``outputs``."""
    return lambda name, *arguments: tool(outputs, name, *arguments)
