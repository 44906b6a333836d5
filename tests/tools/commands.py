"""Runs command lines in this process: the imports of a fresh one take seconds."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from kd_det import cli
from tests.conftest import ROOT, kept_loggers


def run_here(verb: str, *arguments: object, datasets: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``kd-det VERB ...`` in this process.

    Args:
        verb: what ``cli.VERBS`` has, or "module:function".
        datasets: the miniature COCO's root, in place of DETECTRON2_DATASETS.
    """
    line = [str(argument) for argument in arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with ExitStack() as stack:
        stack.enter_context(kept_loggers())
        stack.enter_context(patch("kd_det.common.registry._imported", []))
        stack.enter_context(kept_datasets())
        if datasets is not None:
            stack.enter_context(coco_at(datasets))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        try:
            cli.run(verb, line) if ":" in verb else cli.main([verb, *line])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else bool(end.code)
    return subprocess.CompletedProcess([verb, *line], code, out.getvalue(), err.getvalue())


@contextmanager
def kept_datasets() -> Iterator[None]:
    """Forgets the data sets that are registered meanwhile."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list())
    try:
        yield
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name, None)


@contextmanager
def coco_at(root: Path) -> Iterator[None]:
    """Detectron2's COCO 2017 at ``root``: DETECTRON2_DATASETS is read once, at the import of its catalogues."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

    names = {f"coco_2017_{split}": f"{split}2017" for split in ("train", "val")}
    before = {name: (DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in names}
    for name, split in names.items():
        file = str(root / "coco" / "annotations" / f"instances_{split}.json")
        register_coco_instances(name, _get_builtin_metadata("coco"), file, str(root / "coco" / split))
    try:
        yield
    finally:
        for name, (load, metadata) in before.items():
            DatasetCatalog.pop(name)
            DatasetCatalog.register(name, load)
            MetadataCatalog[name] = metadata


def run_door(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs ``tools/<name>.py`` in this process."""
    (command,) = re.findall(r'run\("(.+)"\)', (ROOT / "tools" / f"{name}.py").read_text())
    return run_here(command, *arguments)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The one error line of a command that ends with a user error."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, (result.returncode, result.stderr[-2000:])
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line
