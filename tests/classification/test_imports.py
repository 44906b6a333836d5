"""The walls of the classification package, read from its imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.classification.conftest import ROOT

PACKAGE = ROOT / "classification"
PROGRAM = """
import importlib, pkgutil, sys
sys.modules["detectron2"] = None  # importing it is an ImportError
import classification
for module in pkgutil.walk_packages(classification.__path__, "classification."):
    importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("classification.")]))
"""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
LIBRARY = {name: path for name, path in MODULES.items() if not name.startswith("classification.studies")}


def imported(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """The names that a module imports; without ``everywhere`` only when it is imported itself."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import"
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from classification import states" imports a module, "from classification.states import X" a name of it.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_needs_detectron2():
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 20


def test_kd_dets_losses_and_common_are_all_that_is_imported_of_it():
    rooms = {name.split(".")[1] for path in MODULES.values() for name in imported(path) if name.startswith("kd_det.")}
    assert rooms == {"losses", "common"}


def test_only_the_studies_import_the_studies():
    found = [
        (module, name)
        for module, path in LIBRARY.items()
        for name in imported(path)
        if name.startswith("classification.studies")
    ]
    assert not found


def test_no_circles():
    """Importing any module first works, and no module is used before it is complete."""
    needs = {
        module: {
            max((m for m in MODULES if f"{name}.".startswith(f"{m}.")), key=len)
            for name in imported(path, everywhere=False)
            if name.startswith("classification.")
        }
        - {module}
        for module, path in MODULES.items()
    }
    ready: set[str] = set()
    while free := {module for module, others in needs.items() if module not in ready and others <= ready}:
        ready |= free
    assert ready == MODULES.keys(), {module: needs[module] - ready for module in MODULES.keys() - ready}
