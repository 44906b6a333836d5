import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kd_det.common import run_steps
from kd_det.common.processes import forwarding_sigterm, stream
from kd_det.common.run_steps import fingerprint, run_step

RECIPE = {"config": "a", "inputs": {"w": "1"}}


def writes(folder, text, name="out"):
    """A command that appends to a file."""
    return [sys.executable, "-c", f"open({str(folder / name)!r}, 'a').write({text!r})"]


def test_a_fingerprint_tells_recipes_apart_and_not_their_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


@pytest.mark.parametrize(
    ("files", "decision"),
    [
        ({}, "start"),
        ({"result.json": '{"fingerprint": "x"}', "out": ""}, "reuse"),
        ({"result.json": '{"fingerprint": "x"}'}, "start"),
        ({"result.json": '{"fingerprint": "y"}', "out": ""}, "start"),
        ({"result.json": '{"fingerpr', "out": ""}, "start"),
        ({"run.json": '{"fingerprint": "x"}'}, "start"),
        ({"run.json": '{"fingerprint": "x"}', "last_checkpoint": "model_0000009.pth"}, "resume"),
        ({"run.json": '{"fingerprint": "y"}', "last_checkpoint": "model_0000009.pth"}, "start"),
    ],
)
def test_a_folder_is_kept_resumed_or_emptied(tmp_path, monkeypatch, files, decision):
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace('"x"', f'"{fingerprint(RECIPE)}"'))
    monkeypatch.setattr(run_steps, "stream", lambda line, threads, progress: decided.extend(line))
    decided = []
    run_step(tmp_path, RECIPE, "out", lambda resume: ["resume" if resume else "start"], dict)
    assert decided == ([] if decision == "reuse" else [decision])
    assert (tmp_path / "last_checkpoint").exists() == (decision == "resume")  # the folder of another recipe is emptied


def test_a_finished_step_is_not_run_again(tmp_path):
    folder = tmp_path / "step"
    for _ in range(2):
        result = run_step(folder, RECIPE, "out", lambda resume: writes(folder, "x"), lambda: {"AP": 12.5})
        assert result["AP"] == 12.5
    assert (folder / "out").read_text() == "x"


def test_another_recipe_starts_from_an_empty_folder(tmp_path):
    folder = tmp_path / "step"
    run_step(folder, RECIPE, "out", lambda resume: writes(folder, "x"), dict)
    run_step(folder, {**RECIPE, "config": "b"}, "out", lambda resume: writes(folder, "y"), dict)
    assert (folder / "out").read_text() == "y"


def test_an_interrupted_step_resumes_and_its_seconds_add_up(tmp_path):
    folder = tmp_path / "step"
    seen = []

    def fails(resume):
        seen.append(resume)
        checkpoint = str(folder / "last_checkpoint")
        return [sys.executable, "-c", f"open({checkpoint!r}, 'w').close(); print('why'); raise SystemExit(3)"]

    with pytest.raises(RuntimeError, match=r"(?s)why.*code 3"):
        run_step(folder, RECIPE, "out", fails, dict)
    first = json.loads((folder / "run.json").read_text())["seconds"]
    assert first > 0
    assert not (folder / "result.json").exists()

    def succeeds(resume):
        seen.append(resume)
        return writes(folder, "x")

    assert run_step(folder, RECIPE, "out", succeeds, dict)["seconds"] > first
    assert seen == [False, True]


def test_progress_is_shown_and_the_rest_is_not(capfd):
    stream([sys.executable, "-c", "print('noise'); print('eta: 0:01  iter: 19  total_loss: 1')"])
    shown = capfd.readouterr().out
    assert "iter: 19" in shown
    assert "noise" not in shown


def test_threads_of_a_command(capfd):
    show = "import os; print(' iter: ', os.environ.get('OMP_NUM_THREADS'))"
    stream([sys.executable, "-c", show], threads=3)
    assert "iter:  3" in capfd.readouterr().out


def test_sigterm_ends_every_running_command(tmp_path):
    def wait(name):
        ready = f"open({str(tmp_path / name)!r}, 'w'); import time; time.sleep(60)"
        with pytest.raises(RuntimeError, match="ended with code -15"):
            stream([sys.executable, "-c", ready])
        return name

    with forwarding_sigterm(), ThreadPoolExecutor(2) as pool:
        ended = [pool.submit(wait, name) for name in ("a", "b")]
        while not all((tmp_path / name).exists() for name in ("a", "b")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        assert [future.result(timeout=30) for future in ended] == ["a", "b"]
