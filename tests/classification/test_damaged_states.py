"""--resume: a missing or damaged file is refused in one line and runs no code; states of older versions still work."""

from __future__ import annotations

import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch

from classification import states, train
from classification.states import random_states, set_random_states
from classification.trainer import Trainer
from kd_det.common.errors import SetupError
from tests.classification import forked
from tests.classification.conftest import outcome
from tests.classification.test_exact_resume import assert_same
from tests.classification.test_output_folder import KILL, SHORT

FILES = ["model.safetensors", "optimizer.bin", "progress.pt", "random_states_0.pkl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a run, "run", that was stopped after 7 steps."""
    folder = tmp_path_factory.mktemp("damaged")
    assert forked.train(folder, *SHORT, "OUTPUT_DIR", "run", kill=KILL).returncode == 128 + signal.SIGTERM
    return folder


@pytest.fixture
def state(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run" / "states" / "0-7"


@pytest.fixture
def resume(state, monkeypatch, capsys):
    """``resume()`` runs the command up to its first step; returns its error line, "" if it gets there."""
    monkeypatch.chdir(state.parents[2])
    monkeypatch.setattr(Trainer, "train", lambda self, received: pytest.exit("training began"))

    def run() -> str:
        with pytest.raises((SystemExit, pytest.exit.Exception)) as raised:
            train.main(["--resume", *map(str, SHORT), "OUTPUT_DIR", "run"])
        error = capsys.readouterr().err
        if raised.type is not SystemExit:
            return ""
        assert raised.value.code == 2 and error.startswith("error: --resume: ") and error.count("\n") == 1
        return error

    return run


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "a byte changed":
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "of something else":
        torch.save({"other": 1}, path)


@pytest.mark.parametrize("how", ["missing", "truncated", "a byte changed", "empty", "of something else"])
@pytest.mark.parametrize("name", [*FILES, "digests.json"])
def test_a_damaged_file_is_named(state, name, how):
    damage(state / name, how)
    if name == "digests.json" and how == "missing":
        return  # as in the states of earlier versions
    with pytest.raises(SetupError, match=rf"^--resume: '.*0-7/{name}' is .*There is no older state: .*--overw"):
        states.check_state(state)


@pytest.mark.parametrize("name", FILES)
def test_without_digests_what_cannot_be_used_is_named_as_well(state, resume, name):
    (state / "digests.json").unlink()
    for how in ("missing", "truncated", "empty", "of something else"):
        shutil.copy(state / name, state / "kept")
        damage(state / name, how)
        line = resume()
        assert f"0-7/{name}'" in line and "start again with --overwrite" in line, (how, line)
        shutil.move(state / "kept", state / name)
    assert resume() == ""


def test_the_command_refuses_and_names_the_older_state(state, resume):
    shutil.copytree(state, state.with_name("0-3"))
    damage(state / "random_states_0.pkl", "a byte changed")
    assert "Remove the folder 'run/states/0-7' to resume from the older 0-3." in resume()
    shutil.rmtree(state)
    assert resume() == ""


class Command:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("name", FILES[1:])
def test_no_code_is_run(state, resume, name):
    (state / "digests.json").unlink()
    torch.save({"state": Command(), "random_state": Command()}, state / name)
    assert f"0-7/{name}' cannot be used: " in resume()
    assert not (state.parents[2] / "ran").exists()


def test_states_of_earlier_versions_go_on_to_the_same_bits(folder, tmp_path):
    """Written by Accelerate, with NumPy's random state as a pickled array, and no digests."""
    shutil.copytree(folder / "run", tmp_path / "run")
    state = tmp_path / "run" / "states" / "0-7"
    (state / "digests.json").unlink()
    path = state / "random_states_0.pkl"
    saved = torch.load(path, weights_only=True)
    name, words, *rest = saved["numpy_random_seed"]
    torch.save({**saved, "step": 0, "numpy_random_seed": (name, words.numpy().astype(np.uint32), *rest)}, path)
    resumed = forked.train(tmp_path, "--resume", *SHORT, "OUTPUT_DIR", "run")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert forked.train(tmp_path, *SHORT, "OUTPUT_DIR", "whole").returncode == 0
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"), "an old state")


def test_numpys_state_is_read_as_numpy_wrote_it(tmp_path):
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    wanted = random.getstate(), np.random.get_state(), torch.get_rng_state()
    saved = {"random_state": wanted[0], "numpy_random_seed": wanted[1], "torch_manual_seed": wanted[2]}
    torch.save(saved, tmp_path / "random_states_0.pkl")
    random.random(), np.random.rand(), torch.rand(1)
    cpu = torch.device("cpu")
    states.load_file(tmp_path / "random_states_0.pkl", lambda content: set_random_states(content, cpu))
    assert random.getstate() == wanted[0] and torch.get_rng_state().equal(wanted[2])
    np.testing.assert_equal(np.random.get_state(), wanted[1])
    torch.save(random_states(cpu), tmp_path / "new.pt")  # and as this version writes it
    set_random_states(torch.load(tmp_path / "new.pt", weights_only=True), cpu)
    np.testing.assert_equal(np.random.get_state(), wanted[1])
