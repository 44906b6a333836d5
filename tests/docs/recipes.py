"""Reads the recipes of a page, a heading with its files and commands, and runs them literally, in this process."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from classification.distillers import DISTILLERS
from kd_det import cli
from kd_det.modeling.terms import TERMS
from tests.classification.forked import train
from tests.conftest import ROOT

FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass
class Recipe:
    """A section of a page.

    Attributes:
        files: content by name.
        commands: lines of its ``sh`` blocks, as arguments.
        blocks: its ``python`` blocks without a name.
    """

    title: str
    files: dict[str, str] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)


def read_recipes(page: str) -> dict[str, Recipe]:
    """The sections of ``docs/PAGE`` by their titles; "" is what stands before the first."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    recipes = {}
    for title, text in zip(["", *parts[1::2]], parts[::2], strict=True):
        recipe = recipes[title] = Recipe(title)
        for language, name, content in FENCE.findall(text):
            if name:
                recipe.files[name] = content
            elif language == "sh":
                lines = content.replace("\\\n", " ").splitlines()
                recipe.commands += [shlex.split(line, comments=True) for line in lines if line.strip()]
            elif language == "python":
                recipe.blocks.append(content)
    return recipes


def follow(recipe: Recipe, folder: Path) -> None:
    """Writes the files and runs the commands in ``folder``, which is the working directory."""
    for name, content in recipe.files.items():
        (folder / name).write_text(content)
    for command in recipe.commands:
        with _as_in_a_process_of_its_own():
            _run(command, folder)


def _run(command: list[str], folder: Path) -> None:
    match command:
        case ["kd-det", *arguments]:
            _succeed(command, lambda: cli.main(arguments))
        case ["python", "-m", "classification.train", *arguments]:
            result = train(folder, *arguments)
            assert result.returncode == 0, (command, result.stderr[-3000:])
        case ["python", script]:
            runpy.run_path(script, run_name="__main__")
        case ["pytest", name]:
            _test(Path(name).stem)
        case _:
            raise AssertionError(f"a recipe has a command that is not run here: {shlex.join(command)}")


def _succeed(command: list[str], call: Callable[[], Any]) -> None:
    try:
        call()
    except SystemExit as end:
        assert end.code in (None, 0), (shlex.join(command), end.code)


def _test(name: str) -> None:
    module = importlib.import_module(name)
    tests = [value for key, value in vars(module).items() if key.startswith("test_")]
    assert tests, f"{name} has no test"
    for test in tests:
        test()


@contextmanager
def _as_in_a_process_of_its_own() -> Iterator[None]:
    """Removes what a user's code has registered and imported: the next process would know nothing of it."""
    registries = [(registry, set(registry)) for registry in (TERMS, DISTILLERS)]
    data_sets, modules, path = set(DatasetCatalog.list()), set(sys.modules), sys.path[:]
    sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for registry, names in registries:
            for name in set(registry) - names:
                del registry[name]
        for name in set(DatasetCatalog.list()) - data_sets:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)
        for name in set(sys.modules) - modules:
            if name.startswith(("kd_det_imported_", "my_", "test_my_")):
                del sys.modules[name]
