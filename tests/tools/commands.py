"""Runs a command line of ``tools/`` as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def run_tool(name: str, *arguments: object, **environment: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``tools/<name>.py`` from the repository's root; ``environment`` is added to this process's."""
    added = {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        [sys.executable, f"tools/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **added},
        capture_output=True,
        text=True,
        timeout=300,
    )


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command refused by its user's error ends with."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, (result.returncode, result.stderr[-2000:])
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line
