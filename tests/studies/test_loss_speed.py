"""kd-det bench losses: it runs, both sides compute the same loss, and the peak memory is right."""

from __future__ import annotations

import json

import pytest
import torch

from kd_det.studies import loss_speed


def test_the_command_prints_a_table_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loss_speed, "peak_memory", lambda loss, batch: 3.0)  # It has tests of its own below.
    file = tmp_path / "losses.json"
    arguments = ["--device", "cpu", "--shapes", "8x5", "16x7", "--rounds", "2", "--repeats", "2", "--json", str(file)]
    threads = torch.get_num_threads()
    try:
        loss_speed.main(arguments)
    finally:
        torch.set_num_threads(threads)
    names = ["dkd_loss", "dkd_masks", "kd_loss", "nkd_loss"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[2:]] == [
        [n, *shape] for n in names for shape in (["8", "5"], ["16", "7"])
    ]
    figures = json.loads(file.read_text())
    assert figures["environment"]["threads"] == 1
    for row in figures["results"]:
        assert row["ratio"] == pytest.approx(row["ours_us"] / row["textbook_us"])


@pytest.mark.parametrize("arguments", [["--shapes", "64"], ["--shapes", "4x1"], ["--rounds", "0"], ["--threads", "-1"]])
def test_wrong_settings_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        loss_speed.parse_arguments(arguments)
    assert caught.value.code == 2
    assert f"argument {arguments[0]}: '{arguments[1]}' is" in capsys.readouterr().err


@pytest.mark.parametrize("name", loss_speed.CONTENDERS)
def test_the_contenders_compute_the_same(name):
    s, t, y = loss_speed.make_batch(16, 7, "cpu")
    values, gradients = [], []
    for loss in loss_speed.CONTENDERS[name]:
        student = s.clone().requires_grad_()
        values.append(loss(student, t, y))
        values[-1].backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_peak_memory_counts_what_is_held_at_once():
    batch = loss_speed.make_batch(64, 100, "cpu")

    def four_at_once(s, t, y):
        held = [s.detach() + k for k in range(4)]
        return (s * sum(float(z[0, 0]) for z in held)).sum()

    def one_at_a_time(s, t, y):
        return (s * sum(float((s.detach() + k)[0, 0]) for k in range(4))).sum()

    # Four, and their product with s; or, at the end, s.grad beside the expanded gradient it comes from.
    assert loss_speed.peak_memory(four_at_once, batch) == pytest.approx(5, abs=0.05)
    assert loss_speed.peak_memory(one_at_a_time, batch) < 3


@pytest.mark.parametrize("shape", [(64, 100), (512, 1000)])
@pytest.mark.parametrize("name", ["dkd_loss", "kd_loss", "nkd_loss"])
def test_at_most_four_times_the_logits(name, shape):
    _, ours = loss_speed.CONTENDERS[name]
    assert loss_speed.peak_memory(ours, loss_speed.make_batch(*shape, "cpu")) <= 4
