"""The rooms of kd_det and the walls between them, read from the imports of the source files.

A room is a package or a module directly in ``kd_det``. It may import rooms of its own floor and of lower floors.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = (
    ("common", "losses"),
    ("data", "pretrained", "config", "checkpoint"),
    ("teacher", "export"),
    ("modeling",),
    ("engine", "studies"),
    ("cli",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_ROOMS = 12
COMMAND_LINES = ("kd_det/cli.py", "kd_det/__main__.py", "tools/")


def imported(path: Path, root: Path) -> Iterator[str]:
    """Every module that a file imports, in full, also within functions; "a.b.c" for ``from a.b import c``."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            start = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{start}.{alias.name}" for alias in node.names)


def rooms(root: Path) -> set[str]:
    found = {path.stem for path in (root / "kd_det").glob("*.py")}
    found |= {path.parent.name for path in (root / "kd_det").glob("*/__init__.py")}
    return found - {"__init__", "__main__"}


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def room_of(module: str, known: set[str]) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "kd_det" and len(parts) > 1 and parts[1] in known else None


def violations(root: Path) -> list[str]:
    """What breaks the rules in the source tree at ``root``, one line each."""
    known = rooms(root)
    found = [f"kd_det has the room {room}, which is on no floor" for room in sorted(known - FLOOR_OF.keys())]
    if len(known) > MOST_ROOMS:
        found.append(f"kd_det has {len(known)} rooms, more than {MOST_ROOMS}")
    scripts = {path.stem for path in (root / "tools").glob("*.py")}
    arrows: dict[str, set[str]] = {room: set() for room in known}
    for path in sorted(file for top in ("kd_det", "classification", "tools") for file in (root / top).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for module in imported(path, root):
            found += [f"{name} {fault} ({module})" for fault in _faults(name, module, known)]
            if is_in(module, "tools", *scripts) and not name.startswith("tools/"):
                found.append(f"{name} imports a script of tools ({module})")
            here, there = room_of(name.removesuffix(".py").replace("/", "."), known), room_of(module, known)
            if here and there and here != there:
                arrows[here].add(there)
    return found + [f"kd_det has a circle of imports: {' -> '.join(circle)}" for circle in _circles(arrows)]


def _faults(name: str, module: str, known: set[str]) -> Iterator[str]:
    here, there = room_of(name.removesuffix(".py").replace("/", "."), known), room_of(module, known)
    if here and there and FLOOR_OF.get(here, 0) < FLOOR_OF.get(there, 0):
        yield f"imports a higher room, {there}"
    if here in ("common", "losses"):
        if there not in (None, here):
            yield "imports another room"
        if is_in(module, "detectron2"):
            yield "imports Detectron2"
    if name.startswith("kd_det/") and is_in(module, "classification"):
        yield "imports classification"
    of_detection = is_in(module, "kd_det", "detectron2") and not is_in(module, "kd_det.losses", "kd_det.common")
    if name.startswith("classification/") and of_detection:
        yield "imports other rooms than losses and common"
    if is_in(module, "kd_det.studies", "classification.studies"):
        own = (name.startswith("kd_det/studies/") and is_in(module, "kd_det.studies")) or (
            name.startswith("classification/studies/") and is_in(module, "classification.studies")
        )
        if not own and not name.startswith(COMMAND_LINES):
            yield "imports studies"
    if is_in(module, "unittest") and not name.startswith("tools/"):
        yield "imports unittest"


def _circles(arrows: dict[str, set[str]]) -> Iterator[list[str]]:
    """Removes the rooms that import no others until none is left; what remains are circles."""
    left = {room: set(others) for room, others in arrows.items()}
    while free := {room for room, others in left.items() if not others & left.keys()}:
        left = {room: others for room, others in left.items() if room not in free}
    if left:
        walk = [min(left)]
        while walk[-1] not in walk[:-1]:
            walk.append(min(left[walk[-1]] & left.keys()))
        yield walk[walk.index(walk[-1]) :]


def test_the_walls_stand():
    assert not violations(ROOT)


@pytest.fixture
def house(tmp_path):
    """Writes a source tree of made-up files, path to content, beside what every tree has."""

    def build(files: dict[str, str]) -> Path:
        for name in ("common", "losses", "data", "modeling", "engine", "studies"):
            (tmp_path / "kd_det" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "kd_det" / name / "__init__.py").touch()
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return build


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kd_det/modeling/a.py", "import torch\nfrom kd_det.data import b\nfrom kd_det import losses\nimport kd_det"),
        ("kd_det/modeling/a.py", "from . import b\nfrom .b import c\nfrom ..data.d import e"),
        ("kd_det/studies/a.py", "from kd_det.studies.b import c\nfrom kd_det.engine import run"),
        ("kd_det/cli.py", "def bench():\n    from kd_det.studies import step"),
        ("tools/a.py", "from classification.studies import b\nfrom kd_det.studies import c"),
        ("classification/a.py", "from kd_det.losses import b\nfrom kd_det.common.files import c\nimport torchvision"),
        ("classification/studies/a.py", "from classification.studies import b\nfrom classification.train import c"),
    ],
)
def test_what_is_allowed(house, name, content):
    assert violations(house({name: content})) == []


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("kd_det/data/a.py", "from kd_det.modeling import b", "imports a higher room, modeling"),
        ("kd_det/data/a.py", "from kd_det import engine", "imports a higher room, engine"),
        ("kd_det/data/a.py", "from ..engine import b", "imports a higher room, engine"),
        ("kd_det/data/a.py", "def f():\n    import kd_det.engine.run", "imports a higher room, engine"),
        ("kd_det/common/a.py", "from kd_det.losses import b", "imports another room"),
        ("kd_det/losses/a.py", "import detectron2.layers", "imports Detectron2"),
        ("kd_det/engine/a.py", "from kd_det.studies import b", "imports studies"),
        ("kd_det/engine/a.py", "from classification import train", "imports classification"),
        ("kd_det/engine/a.py", "from unittest.mock import patch", "imports unittest"),
        ("kd_det/extra.py", "", "has the room extra, which is on no floor"),
        ("classification/a.py", "from kd_det.config import b", "imports other rooms than losses and common"),
        ("classification/a.py", "import detectron2", "imports other rooms than losses and common"),
        ("classification/a.py", "from classification.studies import b", "imports studies"),
        ("classification/studies/a.py", "from kd_det.studies import b", "imports studies"),
        ("kd_det/engine/a.py", "from tools.train_net import main", "imports a script of tools"),
    ],
)
def test_what_is_not_allowed(house, name, content, fault):
    found = violations(house({name: content}))
    assert found and any(fault in line for line in found)


def test_circles_and_too_many_rooms_are_found(house):
    circle = {"kd_det/engine/a.py": "import kd_det.studies", "kd_det/studies/a.py": "import kd_det.engine"}
    assert "kd_det has a circle of imports: engine -> studies -> engine" in violations(house(circle))
    many = {f"kd_det/{room}.py": "" for room in ("a", "b", "c", "d", "e", "f", "g")}
    assert "kd_det has 13 rooms, more than 12" in violations(house(many))
