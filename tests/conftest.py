from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@contextmanager
def kept_loggers() -> Iterator[None]:
    """Detectron2 adds handlers to loggers at each start, for a process that starts once. They would write to the
    captured streams of a test that has ended."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "kd_det")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        detectron2_logger = sys.modules.get("detectron2.utils.logger")
        if detectron2_logger is not None:  # it would not set up the same logger a second time
            detectron2_logger.setup_logger.cache_clear()


@pytest.fixture(autouse=True)
def loggers_of_one_test():
    with kept_loggers():
        yield


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """The miniature COCO, read only; its root is what DETECTRON2_DATASETS names."""
    from tests.mini_coco import make_mini_coco

    return make_mini_coco(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory):
    """A torch cache that holds torchvision's ResNet-18 under its download's name, randomly initialised."""
    from torchvision.models import ResNet18_Weights, resnet18

    home = tmp_path_factory.mktemp("torch")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), home / "hub" / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    return home


@pytest.fixture
def train_net(coco, torch_home, tmp_path, monkeypatch):
    """``train_net(*arguments, datasets=..., fresh=False)``: kd-det train, with its output in ``tmp_path``.

    ``fresh`` runs tools/train_net.py in a process of its own; otherwise it is this process, without the seconds of
    the imports.
    """
    from tests.tools.commands import run_here

    def run(*arguments: object, datasets: Path = coco, fresh: bool = False) -> subprocess.CompletedProcess[str]:
        line = [*map(str, arguments), "OUTPUT_DIR", str(tmp_path / "output")]
        environment = command_environment(datasets, torch_home, tmp_path)
        if not fresh:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            return run_here("train", *line, datasets=datasets)
        command = [sys.executable, "tools/train_net.py", *line]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)

    return run


def command_environment(datasets: Path, torch_home: Path, cache: Path) -> dict[str, str]:
    paths = {"DETECTRON2_DATASETS": datasets, "TORCH_HOME": torch_home, "FVCORE_CACHE": cache, "PYTHONPATH": ROOT}
    return {**os.environ, **{name: str(path) for name, path in paths.items()}}
