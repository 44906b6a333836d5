"""The cost of the methods: arms and tables from hand-made results, and the command line once."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from classification.config import load_config
from classification.distillers import DISTILLERS
from classification.studies import commands
from classification.studies.efficiency import (
    all_arms,
    arm_name,
    choose_arms,
    crowd,
    draw_costs,
    draw_scatter,
    efficiency_table,
    make_rows,
    points,
    read_accuracies,
)
from classification.studies.step_worker import noise
from classification.studies.steps import Arm, compare_steps
from kd_det.common.errors import SetupError

PAIR = {"teacher": "resnet20", "student": "resnet8"}
RUNS = [
    {"method": "none", "distiller": "none", "student": "resnet20", "teacher": "", "last_top1": [99]},
    {"method": "none", "distiller": "none", "student": "resnet8", "teacher": "", "last_top1": [90]},
    {"method": "dkd", "distiller": "dkd", **PAIR, "last_top1": [97.0, 98.0]},
    {"method": "sdd_kd", "distiller": "sdd", **PAIR, "last_top1": [96.0, 96.0]},
    {"method": "own", "distiller": "own", **PAIR, "last_top1": [1.0]},
    {"method": "kd", "distiller": "kd", "teacher": "resnet32x4", "student": "resnet8x4", "last_top1": [70.0]},
]


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"kind": "classification", "data": "digits", "runs": RUNS}))
    return path


def test_every_distiller_has_its_arm():
    arms = all_arms()
    settings = {name: load_config("", arm.overrides) for name, arm in arms.items()}
    assert {cfg.DISTILLER for cfg in settings.values()} == set(DISTILLERS)
    assert {cfg.SDD.BASE for cfg in settings.values() if cfg.DISTILLER == "sdd"} == {"kd", "dkd", "nkd"}
    assert len(arms) == len(DISTILLERS) + 4 and next(iter(arms)) == "none"
    assert settings["lskd_dkd"].STANDARDIZE and settings["dot_dkd"].SOLVER.DOT_DELTA
    assert settings["mlkd"].DATA.STRONG_VIEW
    assert all(arm.title == name for name, arm in arms.items())


def test_chosen_arms():
    assert len(choose_arms([])) == len(all_arms())
    assert [arm.title for arm in choose_arms(["mcld", "hcd"])] == ["dkd", "hcd", "mcld"]
    with pytest.raises(SetupError, match=r"--methods: there is no 'mcdl'. Did you mean 'mcld'\?"):
        choose_arms(["mcdl"])


def test_the_benchmark_times_methods_beside_dkd(monkeypatch, capsys):
    monkeypatch.setattr(commands, "compare_pipelines", lambda _: {"in_memory": 2.0, "torchvision": 1.0, "ratio": 2.0})
    asked = []

    def answer(arms, **_):
        asked.append([arm.title for arm in arms])
        return [{"title": arm.title, "seconds": 1.0 + (arm.title == "crd"), "peak_memory_mib": 1} for arm in arms]

    monkeypatch.setattr(commands, "compare_steps", answer)
    for methods in ([], ["--methods", "crd"], ["--methods", "all"]):
        commands.bench(methods)
    plain, crd, every = asked
    assert crd == [*plain, "crd"] and every == [*plain, *(name for name in all_arms() if name != "dkd")]
    assert re.search(r"\| crd +\| 2000 ms +\| +2.* \| +2", capsys.readouterr().out)


def test_the_arm_of_a_run():
    assert [arm_name(row) for row in RUNS] == ["none", "none", "dkd", "sdd_kd", None, "kd"]


def test_accuracies_of_a_pair(results):
    found = read_accuracies(results, "resnet32x4", "resnet8x4")
    assert found == {"teacher": "resnet32x4", "student": "resnet8x4", "data": "digits", "top1": {"kd": [70.0]}}
    found = read_accuracies(results, "resnet56", "resnet20")  # not there: the pair with most methods
    assert found["teacher"] == "resnet20" and found["top1"] == {"none": [90], "dkd": [97.0, 98.0], "sdd_kd": [96, 96]}


def test_accuracies_of_a_paper(tmp_path):
    path = tmp_path / "paper.json"
    pair = {"data": "cifar100", "teacher": "resnet32x4", "student": "resnet8x4"}
    config = "cifar100/methods/{}.yaml cifar100/pairs/res32x4_res8x4.yaml"
    rows = [
        {**pair, "method": "KD", "top1": 73.33, "config": config.format("kd")},
        {**pair, "method": "DKD", "top1": 76.32, "config": config.format("dkd")},
        {**pair, "method": "DKD, beta 2", "top1": 1.0, "config": config.format("dkd") + " DKD.BETA 2.0"},
        {**pair, "method": "CRD", "top1": 75.51, "config": config.format("x").replace("/x.yaml", ".yaml:crd")},
        {**pair, "method": "OFD", "top1": 74.95, "config": None},
        {**pair, "teacher": "", "method": "alone", "top1": 72.5, "config": "x STUDENT.NAME resnet8x4"},
        {**pair, "data": "imagenet", "method": "DKD", "top1": 2.0, "config": config.format("dkd")},
    ]
    path.write_text(json.dumps({"kind": "classification", "source": "Zhao et al. 2022", "rows": rows}))
    found = read_accuracies(path, "resnet32x4", "resnet8x4")
    assert found["top1"] == {"kd": [73.33], "dkd": [76.32], "crd": [75.51], "none": [72.5]}
    assert found["data"] == "cifar100, Zhao et al. 2022"


def test_costs_of_all_methods_are_drawn():
    rows = make_rows([measured("mcld", 0.22), measured("dkd", 0.2), measured("kd", 0.1)], {})
    time, numbers, memory = draw_costs(rows, "by hand").axes
    assert [label.get_text() for label in time.get_yticklabels()] == ["mcld", "dkd", "kd"]
    assert [bar.get_width() for bar in time.patches] == pytest.approx([220, 200, 100])
    assert [bar.get_width() for bar in numbers.patches] == [10] * 3
    assert [bar.get_width() for bar in memory.patches] == [512.4] * 3


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"kind": "efficiency", "rows": []}', '{"kind": "classification"}']
)
def test_no_results_file(tmp_path, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SetupError, match="is not a results file"):
        read_accuracies(path, "a", "b")


def test_results_without_a_student(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"kind": "classification", "runs": RUNS[:2]}))
    with pytest.raises(SetupError, match="has no distilled student"):
        read_accuracies(path, "a", "b")


def measured(title, seconds):
    sizes = {"extra_parameters": 7, "memory_entries": 3, "buffers_mib": 0.25}
    return {"title": title, "seconds": seconds, "peak_memory_mib": 512.4, **sizes}


def test_rows_and_table_by_hand(tmp_path):
    rows = make_rows([measured("mcld", 0.22), measured("dkd", 0.2), measured("kd", 0.1)], {"dkd": [97.0, 98.0]})
    assert [row["ratio_to_dkd"] for row in rows] == pytest.approx([1.1, 1.0, 0.5])
    assert [row["last_top1"] for row in rows] == [None, [97.0, 98.0], None]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in efficiency_table(rows).splitlines()]
    assert lines[2] == ["kd", "100.0", "0.50", "512", "7", "3", "0.2", ""]
    assert lines[3] == ["dkd", "200.0", "1.00", "512", "7", "3", "0.2", "97.50 ± 0.71"]
    assert [line[0] for line in lines[2:]] == ["kd", "dkd", "mcld"]


def test_the_scatter_has_what_is_known():
    top1 = {"dkd": [97.0, 98.0], "kd": [98.0]}
    rows = make_rows([measured("mcld", 0.22), measured("dkd", 0.2), measured("kd", 0.1)], top1)
    shown = points(rows)
    assert [row["method"] for row in shown] == ["kd", "dkd"]
    figure = draw_scatter(shown, "by hand")
    drawn = [container.lines[0] for container in figure.axes[0].containers]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in drawn] == [(100.0, 98.0), (200.0, 97.5)]
    assert [container.get_label() for container in figure.axes[0].containers] == ["kd  98.00", "dkd  97.50"]


def test_the_crowd_is_enlarged_where_others_are_far_off():
    seconds = {"none": 0.1, "kd": 0.20, "dkd": 0.21, "nkd": 0.20, "rkd": 0.21, "at": 0.20, "reviewkd": 0.5}
    top1 = {"none": 97, "kd": 98.0, "dkd": 98.5, "nkd": 99.0, "rkd": 98.2, "at": 90.0, "reviewkd": 98.4}
    rows = make_rows([measured(*item) for item in seconds.items()], {name: [value] for name, value in top1.items()})
    places = np.array([[1000 * row["seconds"], row["last_top1"][0]] for row in rows])
    assert [row["method"] for row, close in zip(rows, crowd(places), strict=True) if close] == [
        "kd", "dkd", "nkd", "rkd",
    ]  # fmt: skip
    whole, enlarged = draw_scatter(points(rows), "by hand").axes
    assert whole.get_xlim()[1] > 500 and 100 < enlarged.get_xlim()[0] < 200 < 210 < enlarged.get_xlim()[1] < 500
    assert 97 < enlarged.get_ylim()[0] < 98 and 99 < enlarged.get_ylim()[1] < 100


def test_noise_has_cifar100s_shape():
    data = noise()
    assert data.train.images.shape == (50_000, 3, 32, 32) and data.train.images.dtype == torch.uint8
    assert torch.equal(data.train.labels.bincount(), torch.full((100,), 500)) and len(data.class_names) == 100
    assert data.train.images.untyped_storage().nbytes() < 100_000  # what 150 MB would be
    few = data.train.images[::5000].flatten(1).double()
    assert torch.corrcoef(few).fill_diagonal_(0).abs().max() < 0.2  # different images
    assert torch.equal(noise().train.images[17], data.train.images[17])


def test_the_command_line(results, tmp_path, tool):
    line = ["efficiency", "--methods", "mcld", "--rounds", 1, "--steps", 1, "--output-dir", "out"]
    line += ["--teacher", "resnet8", "--student", "resnet8", "--batch-size", 4]
    result = tool(tmp_path, *line, "--results", results)
    assert result.returncode == 0, result.stderr[-3000:]
    out = tmp_path / "out"
    pictures = {f"efficiency{part}.{kind}" for part in ("", "_costs") for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == {"efficiency.json", *pictures}
    record = json.loads((out / "efficiency.json").read_text())
    rows = {row["method"]: row for row in record["rows"]}
    assert rows.keys() == {"dkd", "mcld"} and (record["data"], record["batch_size"]) == ("noise", 4)
    assert rows["mcld"]["ratio_to_dkd"] == pytest.approx(rows["mcld"]["seconds"] / rows["dkd"]["seconds"])
    # MCLD's queue is of CIFAR-100's size: float32 logits and int64 indices of 50,000 samples.
    assert rows["mcld"]["buffers_mib"] == pytest.approx(50_000 * (100 * 4 + 8) / 2**20, rel=1e-3)
    assert rows["mcld"]["memory_entries"] == rows["mcld"]["extra_numbers"] == 50_000 * 100
    assert rows["dkd"]["buffers_mib"] == 0 and rows["dkd"]["extra_parameters"] == rows["mcld"]["extra_parameters"] == 0
    assert rows["dkd"]["last_top1"] == [97.0, 98.0] and rows["mcld"]["last_top1"] is None

    refused = tool(tmp_path, *line)  # there is no results/ here
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --results 'results/classification_digits.json' is not a results file")


def test_a_method_that_does_not_fit_is_named(capfd):
    sizes = {"teacher": "resnet8", "student": "resnet8", "batch_size": 2000, "rounds": 1, "steps": 1}
    with pytest.raises(RuntimeError, match="the steps of 'KD' failed"):
        compare_steps([Arm("KD", ("DISTILLER", "kd"))], **sizes)
    told = capfd.readouterr().err
    assert "error: DATA.BATCH_SIZE 2000" in told and "Traceback" not in told


def test_models_that_do_not_exist():
    with pytest.raises(SetupError, match="resnet9"):
        compare_steps([Arm("KD")], teacher="resnet8", student="resnet9", batch_size=4, rounds=1, steps=1)
