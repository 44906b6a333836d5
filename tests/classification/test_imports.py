"""The classification package does without detectron2."""

from __future__ import annotations

import subprocess
import sys

from tests.classification.conftest import ROOT

PROGRAM = """
import importlib, pkgutil, sys
sys.modules["detectron2"] = None  # importing it is an ImportError
import classification
for module in pkgutil.walk_packages(classification.__path__, "classification."):
    importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("classification.")]))
"""


def test_no_module_needs_detectron2():
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 20
