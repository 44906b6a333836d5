from __future__ import annotations

import pytest

from tests.engine.command import run_here, stage_knowledge
from tests.stress.signals_detection import Stage


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """A data set, a teacher and settings for runs of a few steps."""
    return Stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture
def train(stage, tmp_path):
    """``train(*options)``: tools/train_net.py in this process, with its output in ``tmp_path``/output."""
    return lambda *options: run_here(stage, tmp_path / "output", *options)


@pytest.fixture(scope="session")
def knowledge(stage, tmp_path_factory):
    """A folder of stored knowledge for the stage's training set, as its teacher would have made it."""
    return stage_knowledge(stage, tmp_path_factory.mktemp("knowledge"))
