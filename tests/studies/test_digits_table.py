import json

import pytest
import torch

from kd_det.common.tables import markdown, summary
from kd_det.studies.metrics import average_precision, cost, metrics_table, read_metrics, series, weights_mib


def write_metrics(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluation(iteration, ap):
    return {"iteration": iteration, "bbox/AP": ap, "bbox/AP50": ap + 30, "bbox/AP75": ap + 5}


def test_last_and_best_ap_are_kept_apart(tmp_path):
    evaluations = [evaluation(99, 41.0), evaluation(199, 43.5), evaluation(300, 42.0)]
    path = write_metrics(tmp_path / "metrics.json", [{"iteration": 19, "total_loss": 2.0}, *evaluations])
    scores = average_precision(read_metrics(path))
    assert scores == {"AP": 42.0, "AP50": 72.0, "AP75": 47.0, "best_AP": 43.5}


def test_cost_is_the_step_alone_and_the_highest_peak():
    lines = [{"time": 0.5, "data_time": 0.1, "peak_memory_mib": 900.0}, {"time": 0.4, "data_time": 0.1}]
    lines += [{"time": 0.9, "data_time": 0.1, "peak_memory_mib": 950.0}, {"bbox/AP": 3.0}]
    assert cost(lines) == pytest.approx({"seconds_per_iteration": 0.4, "memory_mib": 950.0})


def test_no_evaluation_is_an_error():
    with pytest.raises(ValueError, match="EVAL_PERIOD"):
        average_precision([{"iteration": 19, "total_loss": 2.0}])


def test_a_resumed_run_counts_each_iteration_once_and_its_later_value(tmp_path):
    logged = ((19, 4.0), (39, 3.0), (59, 9.0), (39, 2.5), (59, 2.0))
    lines = [{"iteration": iteration, "total_loss": loss} for iteration, loss in logged]
    path = write_metrics(tmp_path / "metrics.json", lines)
    path.write_text(path.read_text() + '{"iteration": 79, "total_lo')
    assert series(read_metrics(path), "total_loss") == ([20, 40, 60], [4.0, 2.5, 2.0])


def test_mean_and_sample_standard_deviation_by_hand():
    # mean 42; deviations -2, 0, 2; variance (4 + 0 + 4) / (3 - 1) = 4
    assert summary([40.0, 42.0, 44.0]) == "42.0 ± 2.0"
    assert summary([41.25]) == "41.2"


def test_the_table_has_a_row_for_every_model():
    run = {"AP": 40.0, "AP50": 70.0, "AP75": 45.0, "best_AP": 41.0, "seconds": 90.4, "weights_mib": 6.5}
    run |= {"seconds_per_iteration": 0.214, "memory_mib": 1024.0}
    table = metrics_table({"teacher": [run], "student alone": [run, {**run, "AP": 42.0}]})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    costs = ["training, s", "s/iter", "peak MiB", "weights, MiB"]
    assert rows[0] == ["model", "AP", "AP50", "AP75", "best AP", *costs, "seeds"]
    assert rows[2] == ["teacher", "40.0", "70.0", "45.0", "41.0", "90", "0.21", "1024", "6.5", "1"]
    # mean 41, deviations -1 and 1, variance 2 / 1
    assert rows[3][:3] == ["student alone", "41.0 ± 1.4", "70.0 ± 0.0"]
    assert rows[3][-1] == "2"
    shared = metrics_table({"teacher": [run]}, timed=False)
    assert "s/iter" not in shared and "training" not in shared and "0.21" not in shared and "1024" in shared


def test_a_table_without_rows_has_its_header():
    assert markdown([], ["a", "b"], text_columns=1).splitlines()[0].split() == ["|", "a", "|", "b", "|"]


def test_weights_are_the_models_tensors_alone(tmp_path):
    model = {"w": torch.zeros(1024, 256), "steps": torch.zeros(131072, dtype=torch.int64)}
    torch.save({"model": model, "optimizer": {"state": torch.zeros(10**6)}}, tmp_path / "model.pth")
    assert weights_mib(tmp_path / "model.pth") == 2.0  # 1 MiB of float32 and 1 MiB of int64
