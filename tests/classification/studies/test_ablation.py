"""The sweep: its bookkeeping with stand-ins for training, its tables by hand-made results, and the command line."""

from __future__ import annotations

import csv
import json
import math
import threading
import time

import numpy as np
import pytest

from classification.config import load_config
from classification.studies import ablation
from classification.studies.ablation import (
    ablation_table,
    draw_heat_map,
    heat_map,
    make_rows,
    outcome,
    write_ablation_csv,
)
from classification.studies.grid import combinations, value_of
from kd_det.common.errors import SetupError
from kd_det.common.figures import save_figure
from kd_det.common.processes import PEAK, run_side_by_side
from tests.classification.conftest import SHORT

GRID = (("DKD.ALPHA", "0.5", "1.0"), ("DKD.BETA", "2.0", "8.0"))


class Runner:
    """Replaces training: records which runs start and how many run at a time, and waits until it is told to end."""

    def __init__(self, peaks: dict[int, float | None]) -> None:
        self.peaks, self.started, self.most = peaks, [], 0
        self.running = 0
        self.lock = threading.Condition()
        self.let_go: set[int] = set()

    def __call__(self, run: int):
        with self.lock:
            self.started.append(run)
            self.running += 1
            self.most = max(self.most, self.running)
            self.lock.notify_all()
            self.lock.wait_for(lambda: run in self.let_go, timeout=30)
            self.running -= 1
        return {"run": run, PEAK: self.peaks[run]}

    def when_started(self, *runs: int) -> None:
        with self.lock:
            assert self.lock.wait_for(lambda: sorted(self.started) == list(runs), timeout=30), self.started

    def end(self, *runs: int) -> None:
        with self.lock:
            self.let_go.update(runs)
            self.lock.notify_all()


def in_background(runner, count, jobs, memory=None):
    results = []
    thread = threading.Thread(target=lambda: results.extend(run_side_by_side(range(count), runner, jobs, memory)))
    thread.start()
    return thread, results


def test_runs_start_in_order_and_results_keep_it():
    runner = Runner(dict.fromkeys(range(4), 1.0))
    thread, results = in_background(runner, 4, jobs=2)
    runner.when_started(0, 1)
    runner.end(1)  # the later one ends first
    runner.when_started(0, 1, 2)
    runner.end(0, 2, 3)
    thread.join(30)
    assert [result["run"] for result in results] == [0, 1, 2, 3] and runner.most == 2


def test_the_memory_limit_counts_with_the_largest_peak_so_far():
    """Under 1,000 MiB: alone until a peak is known; of 300 MiB three, and of 400 two at a time."""
    runner = Runner({0: 300.0, 1: 200.0, 2: 400.0, 3: 100.0, 4: 100.0, 5: 100.0, 6: 100.0})
    thread, results = in_background(runner, 7, jobs=9, memory=1000.0)
    runner.when_started(0)
    runner.end(0)
    runner.when_started(0, 1, 2, 3)
    runner.end(2)  # two still run, as many as the limit holds of 400
    runner.end(1)
    runner.when_started(0, 1, 2, 3, 4)
    runner.end(3, 4, 5, 6)
    thread.join(30)
    assert len(results) == 7 and runner.most == 3


def test_a_run_larger_than_the_limit_is_alone():
    runner = Runner({0: None, 1: 5000.0, 2: 5000.0})
    runner.end(0, 1, 2)
    thread, results = in_background(runner, 3, jobs=3, memory=1000.0)
    thread.join(30)
    assert len(results) == 3 and runner.most == 1


def test_after_a_failure_nothing_new_starts():
    started, ended = [], []

    def train(run):
        started.append(run)
        if run == 1:
            raise RuntimeError("run 1 failed")
        time.sleep(0.5)
        ended.append(run)
        return {PEAK: 1.0}

    with pytest.raises(RuntimeError, match="run 1 failed"):
        run_side_by_side(range(9), train, jobs=2)
    assert sorted(started) == [0, 1] and ended == [0]  # what was under way went on to its end


def test_combinations():
    chosen = combinations(GRID)
    assert [combination.overrides[1::2] for combination in chosen] == [
        ("0.5", "2.0"), ("0.5", "8.0"), ("1.0", "2.0"), ("1.0", "8.0"),
    ]  # fmt: skip
    assert chosen[0].overrides == ("DKD.ALPHA", "0.5", "DKD.BETA", "2.0")
    paths = combinations([("STUDENT.NAME", "timm/a", "timm_a", "timm%2Fa")])
    assert len({combination.folder for combination in paths}) == 3
    assert not any("/" in combination.folder for combination in paths)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([("SEED", "1", "2")], "--grid SEED: --seeds sets it"),
        ([("OUTPUT_DIR", "a")], "--grid OUTPUT_DIR: --output-dir sets it"),
        ([("DKD.BETA",)], "--grid DKD.BETA has no values"),
        ([("DKD.BETA", "1.0", "1.0")], "a value is listed twice"),
        ([("DKD.BETA", "1.0"), ("DKD.BETA", "2.0")], "--grid DKD.BETA is given twice"),
    ],
)
def test_invalid_grids(grid, message):
    with pytest.raises(SetupError, match=message):
        combinations(grid)


FILES = ("cifar100/methods/dkd.yaml", "digits/pairs/resnet20_resnet8.yaml")


def sweep(tmp_path, grid, **settings):
    defaults = {"opts": (), "seeds": 1, "output_dir": tmp_path / "out", **settings}
    return ablation.Ablation(FILES, grid=grid, **defaults)


@pytest.mark.parametrize(
    ("grid", "opts", "message"),
    [
        ([("DKD.BETTA", "1.0")], (), "there is no key 'DKD.BETTA'. Did you mean 'DKD.BETA'"),
        ([("DKD.BETA", "2.0", "many")], (), "DKD.BETA many: configuration .*Type mismatch"),
        ([("DKD.BETA", "2.0", "-1.0")], (), "--grid, DKD.BETA -1.0: DKD.BETA is -1.0"),
        ([("DKD.ALPHA", "1.0"), ("DKD.TEMPERATURE", "4.0", "0.0")], (), "DKD.ALPHA 1.0, DKD.TEMPERATURE 0.0: "),
        ([("DISTILLER", "dkd", "mcld"), ("MCLD.QUEUE", "5000")], (), "DISTILLER mcld, MCLD.QUEUE 5000: MCLD.QUEUE"),
        ([("STUDENT.NAME", "resnet8", "resnet9")], (), "STUDENT.NAME resnet9: "),
        ([("SOLVER.LR", "0.1", "0.0")], (), "SOLVER.LR 0.0: SOLVER.LR"),
        ([("DKD.BETA", "2.0", "2.00")], (), "DKD.BETA 2.00: it is the same as DKD.BETA 2.0"),
        ([("DKD.BETA", "2.0")], ("DKD.BETA", "4.0"), "--opts DKD.BETA is swept by --grid as well"),
    ],
)
def test_every_combination_is_checked_before_the_first_run(tmp_path, monkeypatch, grid, opts, message):
    monkeypatch.chdir(tmp_path)
    for name in ("train_teacher", "run_side_by_side"):
        monkeypatch.setattr(ablation, name, lambda *a, name=name: pytest.fail(f"{name} was called"))
    with pytest.raises(SetupError, match=message):
        sweep(tmp_path, grid, opts=opts).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"seeds": 0}, "--seeds 0"), ({"jobs": 0}, "--jobs 0"), ({"memory_gib": math.nan}, "--memory-gib nan")],
)
def test_invalid_settings(tmp_path, settings, message):
    with pytest.raises(SetupError, match=message):
        sweep(tmp_path, GRID, **settings).run()


def test_the_runs_of_a_sweep(tmp_path, monkeypatch):
    """Each combination with each seed in a folder of its own, and the rows of what they gave."""
    monkeypatch.chdir(tmp_path)
    taught, trained = [], []

    def train(run):
        trained.append(run)
        return {"last_top1": 50.0 + 10 * run.cfg.DKD.ALPHA + run.seed, PEAK: 100.0 * run.seed}

    monkeypatch.setattr(ablation, "outcome", train)
    monkeypatch.setattr(ablation, "train_teacher", lambda cfg: taught.append(cfg.TEACHER.WEIGHTS))
    rows = sweep(tmp_path, GRID, seeds=2, jobs=2, opts=("SOLVER.EPOCHS", "3")).run()
    assert taught == ["digits/vanilla_resnet20"]  # once, before the students
    assert sorted(run.seed for run in trained) == [1] * 4 + [2] * 4
    assert len({run.cfg.OUTPUT_DIR for run in trained}) == 8
    assert all(run.cfg.OUTPUT_DIR.startswith(str(tmp_path / "out" / "runs")) for run in trained)
    assert {run.cfg.SOLVER.EPOCHS for run in trained} == {3} and all(run.threads >= 1 for run in trained)
    assert rows[1] == {"values": {"DKD.ALPHA": "0.5", "DKD.BETA": "8.0"}, "last_top1": [56.0, 57.0], PEAK: 200.0}


def test_a_diverged_run_is_a_result_and_another_failure_is_not():
    class Failing:
        def __init__(self, text):
            self.text = text

        def result(self):
            raise RuntimeError(self.text)

    diverged = Failing("error: {'loss_ce': nan} is not finite in epoch 1, step 2, samples [3]")
    assert outcome(diverged) == {"last_top1": None, PEAK: None}
    with pytest.raises(RuntimeError, match="disk"):
        outcome(Failing("no space left on disk"))


def rows_by_hand(grid=GRID):
    results = [[96.0, 98.0], [97.0, 97.0], [90.0, None], [99.0, 99.5]]
    chosen = combinations(grid)
    return make_rows(chosen, [[{"last_top1": v, PEAK: v and 100 + v} for v in top1] for top1 in results[: len(chosen)]])


def test_table_and_csv_by_hand(tmp_path):
    lines = ablation_table(rows_by_hand()).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["DKD.ALPHA", "DKD.BETA", "top-1", "seeds"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[0] == ["0.5", "2.0", "97.00 ± 1.41", "2"] and cells[2] == ["1.0", "2.0", "diverged (1 of 2)", "2"]
    write_ablation_csv(tmp_path / "a.csv", rows_by_hand())
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert float(read[0]["top1_mean"]) == 97 and float(read[0]["top1_std"]) == pytest.approx(math.sqrt(2))
    assert read[2] == {"DKD.ALPHA": "1.0", "DKD.BETA": "2.0", "top1_mean": "", "top1_std": "", "seeds": "2"}


def test_heat_map_by_hand(tmp_path):
    data = heat_map(rows_by_hand())
    assert (data.row_key, data.column_key) == ("DKD.ALPHA", "DKD.BETA")
    assert (data.row_values, data.column_values) == (["0.5", "1.0"], ["2.0", "8.0"])
    np.testing.assert_array_equal(data.means, [[97.0, 97.0], [np.nan, 99.25]])
    assert data.texts == [["97.00\n± 1.41", "97.00\n± 0.00"], ["diverged\n(1 of 2)", "99.25\n± 0.35"]]
    for path in save_figure(draw_heat_map(data, "by hand"), tmp_path, "map"):
        assert path.stat().st_size > 1000


def test_heat_map_of_one_key_and_of_three():
    data = heat_map(rows_by_hand([("DKD.BETA", "2.0", "4.0", "8.0", "9.0")]))
    assert (data.row_key, data.row_values, data.column_key) == ("", [""], "DKD.BETA") and data.means.shape == (1, 4)
    data = heat_map(rows_by_hand([("DKD.TEMPERATURE", "4.0"), *GRID]))
    assert (data.row_key, data.column_key) == ("DKD.TEMPERATURE,\nDKD.ALPHA", "DKD.BETA")
    assert (data.row_values, data.column_values) == (["4.0, 0.5", "4.0, 1.0"], ["2.0", "8.0"])
    np.testing.assert_array_equal(data.means, [[97.0, 97.0], [np.nan, 99.25]])


def test_value_of_a_key():
    cfg = load_config("", ["DKD.BETA", "3.0"])
    assert value_of(cfg, "DKD.BETA") == 3.0 and value_of(cfg, "DISTILLER") == "none"


def test_the_command_line_sweeps_reuses_and_resumes(teacher_file, tmp_path, tool):
    settings = [*SHORT, "SOLVER.EPOCHS", 1, "TEACHER.NAME", "resnet14", "TEACHER.WEIGHTS", teacher_file]
    settings += ["TEACHER.AUTO_TRAIN", "False", "STUDENT.NAME", "resnet8"]
    fixed = ["--config-file", *FILES, "--seeds", 1, "--output-dir", "out", "--jobs", 2, "--memory-gib", 8]
    line = ["ablate", *fixed, "--grid", "DKD.BETA", "1.0", "8.0", "--opts", *settings]
    first = tool(tmp_path, *line)
    assert first.returncode == 0, first.stderr[-3000:]
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "runs", "ablation.csv", "ablation.json", "ablation.png", "ablation.svg",
    }  # fmt: skip
    record = json.loads((out / "ablation.json").read_text())
    assert record["keys"] == ["DKD.BETA"] and [row["values"]["DKD.BETA"] for row in record["rows"]] == ["1.0", "8.0"]
    for row in record["rows"]:
        result = json.loads((out / f"runs/DKD.BETA={row['values']['DKD.BETA']}/seed1/result.json").read_text())
        assert row["last_top1"] == [result["last_top1"]] and result["config"]["DKD"]["BETA"] == float(
            row["values"]["DKD.BETA"]
        )
        assert f"{result['last_top1']:.2f}" in first.stdout
    assert first.stdout.count("== out") == 2  # both were trained

    (out / "runs/DKD.BETA=8.0/seed1/result.json").unlink()  # as if it had been interrupted at the very end
    again = tool(tmp_path, *line)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("== out") == 1 and "== out/runs/DKD.BETA=8.0/seed1" in again.stdout
    assert json.loads((out / "ablation.json").read_text())["rows"] == [
        {**row, PEAK: pytest.approx(row[PEAK], rel=1)} for row in record["rows"]
    ]

    refused = tool(tmp_path, "ablate", *fixed, "--grid", "DKD.BETA", "many", "--opts", *settings)
    assert refused.returncode == 2 and refused.stderr.startswith("error: --grid, DKD.BETA many: ")
