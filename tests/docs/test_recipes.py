"""The recipes of the documentation, run literally from an empty folder."""

from __future__ import annotations

import json
import runpy
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from kd_det.config import plain_config
from tests.classification.forked import train
from tests.docs.recipes import follow, read_recipes

RECIPES = read_recipes("extend.md")
DETECTION = ["A term", "A loss", "A data set"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the teacher of the detection recipes: the first command of the page was run there."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        follow(RECIPES[""], folder)
    return folder


@pytest.fixture
def workplace(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_the_page_has_these_recipes():
    assert [title for title, recipe in RECIPES.items() if title] == [*DETECTION, "A distiller"]
    for title in DETECTION:
        assert len(RECIPES[title].files) <= 4  # three, and a test


@pytest.mark.parametrize("title", DETECTION)
def test_recipe(title, workplace):
    follow(RECIPES[title], workplace)
    output, loss = {
        "A term": ("p3", "loss_p3"), "A loss": ("js", "loss_js"), "A data set": ("shapes", "loss_pkd"),
    }[title]  # fmt: skip
    lines = (workplace / "output" / output / "metrics.json").read_text().splitlines()
    assert json.loads(lines[0])[loss] > 0
    checkpoint = torch.load(workplace / "output" / output / "model_final.pth", weights_only=False)
    assert not any(name.startswith("terms") for name in checkpoint["model"])
    if title == "A term":
        assert set(checkpoint["kd_terms"]) == {"p3.adapt.weight", "p3.adapt.bias"}
    if title == "A data set":
        assert "bbox/AP" in json.loads(lines[-1])  # nan where nothing is detected


def test_steps_by_hand(workplace, capsys):
    (workplace / "steps.py").write_text(
        read_recipes("api.md")["Build a student and take steps by hand"].files["steps.py"]
    )
    names = runpy.run_path("steps.py")
    assert capsys.readouterr().out.count("loss_reviewkd") == 2
    plain = build_model(plain_config(names["cfg"]))
    assert plain.state_dict().keys() == torch.load("student.pth")["model"].keys()


def test_the_example_of_the_losses():
    (block,) = read_recipes("losses.md")[""].blocks
    values: dict[str, Any] = {}
    exec(block, values)
    assert values["student_logits"].grad.abs().sum() > 0


def test_distiller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    follow(RECIPES["A distiller"], tmp_path)
    result = json.loads((tmp_path / "output/digits/map_pkd_resnet14_resnet8/result.json").read_text())
    assert result["config"]["MAP_PKD"]["WEIGHT"] == 3.0 and result["extra_parameters"] > 0
    line = ["--import", "my_distillers.py", "--config-file", "digits/base.yaml", "DISTILLER", "map_pkd"]
    ended = train(tmp_path, *line, "MAP_PKD.WEIGHT", -0.5)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "error: MAP_PKD.WEIGHT is -0.5; it must be a finite number, 0 or more."
