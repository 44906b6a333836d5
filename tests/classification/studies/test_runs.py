"""A loaded run equals the run that was saved."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from classification.results import measure_accuracy
from classification.studies.runs import load_run
from kd_det.common.errors import SetupError


@pytest.fixture
def copy(outputs, tmp_path):
    """A copy of a run's folder to damage."""
    return shutil.copytree(outputs / "output" / "tiny" / "kd", tmp_path / "copy")


@pytest.mark.parametrize("given", ["tiny/kd", "output/tiny/kd", "output/tiny/kd/model.pth"])
def test_found_by_name_and_path(outputs, monkeypatch, given):
    monkeypatch.chdir(outputs)
    run = load_run(given)
    assert run.name == "tiny/kd"
    assert run.folder.resolve() == outputs / "output" / "tiny" / "kd"
    assert (run.cfg.DISTILLER, run.cfg.STUDENT.NAME, run.cfg.SOLVER.STEPS) == ("kd", "resnet8", (1,))


def test_student_answers_as_it_was_evaluated(outputs):
    run = load_run(outputs / "output" / "tiny" / "kd", device="cpu")
    assert not run.student.training and not any(p.requires_grad for p in run.student.parameters())
    figures = measure_accuracy(run.student, run.data.val, run.data.num_classes, torch.device("cpu"))
    assert figures["top1"] == run.result["last_top1"]


def test_teacher_is_the_configured_one(outputs, teacher_file):
    run = load_run(outputs / "output" / "tiny" / "kd")
    saved = torch.load(teacher_file, weights_only=True)["model"]
    loaded = run.teacher().model.state_dict()
    assert all(torch.equal(loaded[key].cpu(), saved[key]) for key in saved)


def test_overrides(outputs):
    run = load_run(outputs / "output" / "tiny" / "kd", ["DATA.EVAL_BATCH_SIZE", 100, "TEACHER.NAME", ""])
    assert len(run.data.val) == 4
    with pytest.raises(SetupError, match=r"set TEACHER\.NAME"):
        run.teacher()
    with pytest.raises(SetupError, match=r"Did you mean 'DATA\.ROOT'"):
        load_run(outputs / "output" / "tiny" / "kd", ["DATA.ROT", "datasets"])


def test_a_checkpoint_alone(teacher_file, tmp_path):
    """As an imported teacher is: a model.pth that names model and data."""
    folder = tmp_path / "output" / "cifar" / "vanilla_x"
    folder.mkdir(parents=True)
    content = torch.load(teacher_file, weights_only=True)
    torch.save({key: content[key] for key in ("model", "name", "num_classes", "data")}, folder / "model.pth")
    run = load_run(folder, device="cpu")
    assert (run.name, run.result, run.cfg.DISTILLER) == ("cifar/vanilla_x", {"last_top1": None}, "none")
    assert (run.cfg.STUDENT.NAME, run.cfg.DATA.NAME) == ("resnet14", "digits")
    assert all(value.equal(content["model"][key]) for key, value in run.student.state_dict().items())
    torch.save({key: content[key] for key in ("model", "name")}, folder / "model.pth")
    with pytest.raises(SetupError, match=r"the file does not say its DATA\.NAME. Give --opts DATA\.NAME"):
        load_run(folder)
    assert load_run(folder, ["DATA.NAME", "digits"], device="cpu").cfg.DATA.NAME == "digits"


def test_absent_and_unfinished(copy, tmp_path):
    with pytest.raises(SetupError, match="neither 'nothing' nor 'output/nothing' is a folder"):
        load_run("nothing")
    (copy / "result.json").unlink()
    with pytest.raises(SetupError, match="not finished"):
        load_run(copy)


def test_truncated_weights(copy):
    weights = copy / "model.pth"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(SetupError, match="truncated"):
        load_run(copy)


def test_weights_of_another_model(copy, teacher_file):
    shutil.copy(teacher_file, copy / "model.pth")
    with pytest.raises(SetupError, match="'resnet14'"):
        load_run(copy)


def test_configuration_of_another_version(copy):
    result = json.loads((copy / "result.json").read_text())
    result["config"]["KD"]["SHARPNESS"] = 1.0
    (copy / "result.json").write_text(json.dumps(result))
    with pytest.raises(SetupError, match=r"another version.*SHARPNESS"):
        load_run(copy)
