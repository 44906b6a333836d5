"""The command lines: their files, what they print, and their errors, on two short runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.tools.commands import error_of

RUNS = ["tiny/kd", "tiny/dkd"]
SETTINGS = ["--samples", 80, "--perplexity", 10]


def read(folder: Path, name: str, result) -> tuple[dict, list[dict[str, str]]]:
    """JSON and CSV of a command that ended well, whose pictures can be opened."""
    assert result.returncode == 0, result.stderr[-2000:]
    with Image.open(folder / f"{name}.png") as picture:
        grey = np.array(picture.convert("L"))
    assert min(grey.shape) > 400 and len(np.unique(grey)) > 10
    edges = np.concatenate([grey[[0, -1]].ravel(), grey[:, [0, -1]].ravel()])
    assert (edges == 255).all(), "something is cut off"
    assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
    table = folder / f"{name}.csv"
    rows = list(csv.DictReader(table.open())) if table.is_file() else []
    return json.loads((folder / f"{name}.json").read_text()), rows


def test_linear_probe(analyse, outputs):
    result = analyse("linear_probe", *RUNS, "--teachers")
    content, rows = read(outputs / "output" / "analysis" / "linear_probe", "linear_probe", result)
    assert [row["run"] for row in content["rows"]] == [row["run"] for row in rows]
    assert [row["run"] for row in rows][:2] == RUNS and rows[2]["student"] == "resnet14"  # the teacher, once
    assert [row["probe"] for row in rows] == ["sgd"] * 3
    for row, line in zip(content["rows"], rows, strict=True):
        top1 = row["domains"]["digits_rotated_inverted"]["top1"]
        assert float(line["top1"]) == top1 and line["domain"] == "digits_rotated_inverted"
        assert f" {top1:.2f} " in result.stdout


def test_plot_tsne(analyse, outputs, tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        result = analyse("plot_tsne", *RUNS, *SETTINGS, "--output-dir", folder)
    content, rows = read(folder, "tsne", result)
    assert len(rows) == 160 and {row["run"] for row in rows} == set(RUNS)
    for run in content["runs"]:
        figures = run["embedding"]
        assert f"{run['run']}: embedding silhouette {figures['silhouette']:.3f}, kNN {figures['knn_top1']:.1f} %" in (
            result.stdout
        )
    for name in ("tsne.csv", "tsne.json", "tsne.svg"):
        assert (folder / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


@pytest.mark.parametrize("mode", ["correlation", "class-mean"])
def test_plot_correlation(analyse, tmp_path, mode):
    result = analyse("plot_correlation", *RUNS, "--mode", mode, "--output-dir", tmp_path)
    content, _ = read(tmp_path, "correlation", result)
    assert (content["teacher"]["name"], content["samples"], content["mode"]) == ("resnet14", 360, mode)
    for number, run in enumerate(content["runs"], 1):
        matrix = list(csv.reader((tmp_path / f"difference_{number}.csv").open()))
        values = [[float(value) for value in row[1:]] for row in matrix[1:]]
        assert [row[0] for row in matrix[1:]] == matrix[0][1:] == content["class_names"]
        assert sum(map(sum, values)) / 100 == pytest.approx(run["mean"])
        assert f"{run['run']}: mean |difference| {run['mean']:.4f}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["linear_probe", "tiny/absent"], "run 'tiny/absent'"),
        (["linear_probe", "tiny/kd", "--on", "stl10"], "--data-root 'datasets' has no intact stl10_binary"),
        (["linear_probe", "tiny/kd", "--on", "tiny_imagenet", "--data-root", "x"], "tiny-imagenet-200"),
        (["plot_tsne", *RUNS, "--classes", 1], "--classes 1"),
        (
            ["plot_correlation", *RUNS, "--opts", "TEACHER.WEIGHTS", "absent.pth"],
            "TEACHER.WEIGHTS: there is no file 'absent.pth'",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_user_errors_are_one_line(analyse, arguments, expected):
    assert expected in error_of(analyse(*arguments))


@pytest.mark.parametrize("name", ["linear_probe", "plot_tsne", "plot_correlation"])
def test_help_has_an_example(analyse, name):
    assert f"python tools/{name}.py digits/" in analyse(name, "--help").stdout
