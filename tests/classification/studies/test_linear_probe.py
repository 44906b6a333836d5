"""The probe on features whose accuracy is known, and the row and the picture of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from classification.studies.linear_probe import PROBES, draw, probe_by_lbfgs, probe_by_sgd, probe_run, probe_table
from classification.studies.runs import Answers, collect, load_run
from classification.studies.transfer_data import read_domain

DOMAIN = "digits_rotated_inverted"


def answers(features: torch.Tensor, labels: torch.Tensor) -> Answers:
    return Answers(features.float(), torch.zeros(len(labels), 2), labels)


def gaussians(samples: int, distance: float, seed: int, classes: int = 4) -> Answers:
    """Features of ``classes`` classes, each around its own point at ``distance`` from the origin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    noise = torch.randn(samples, 6, generator=generator)
    return answers(distance * torch.eye(classes, 6)[labels] + noise, labels)


@pytest.mark.parametrize("probe", PROBES.values())
def test_separable_features_are_all_right(probe):
    found = probe(gaussians(400, 20.0, seed=0), gaussians(200, 20.0, seed=1))
    assert found == (100.0, 100.0, True)


@pytest.mark.parametrize("probe", PROBES.values())
def test_features_that_say_nothing_are_right_by_chance(probe):
    """4 classes: 25 %, give or take four standard deviations of 2,000 guesses."""
    found = probe(gaussians(400, 0.0, seed=0), gaussians(2000, 0.0, seed=1))
    assert abs(found.top1 - 25) < 4 * 100 * (0.25 * 0.75 / 2000) ** 0.5
    assert found.train_top1 > found.top1


@pytest.mark.parametrize("probe", PROBES.values())
def test_only_the_test_split_counts(probe):
    train, test = gaussians(400, 20.0, seed=0), gaussians(200, 20.0, seed=1)
    wrong = test._replace(labels=(test.labels + (torch.arange(200) < 50)) % 4)
    assert probe(train, wrong)[:2] == (75.0, 100.0)


def test_units_of_the_features_do_not_matter():
    train, test = gaussians(400, 1.5, seed=0), gaussians(500, 1.5, seed=1)
    units, offset = torch.logspace(-3, 3, 6), torch.arange(6) * 10
    plain = probe_by_lbfgs(train, test)
    scaled = probe_by_lbfgs(*(split._replace(pooled=split.pooled.double() * units + offset) for split in (train, test)))
    assert 30 < plain.top1 < 95
    assert scaled.top1 == pytest.approx(plain.top1, abs=0.5)


def test_standardised_by_the_training_split():
    """The whole test split lies beyond class 1. Standardised by its own statistics, it would not."""
    train = answers(torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1]))
    test = answers(torch.tensor([[10.0], [11.0], [12.0], [13.0]]), torch.ones(4, dtype=torch.int64))
    assert probe_by_lbfgs(train, test).top1 == 100.0


def test_sgd_is_that_of_the_papers_section(monkeypatch):
    """A.7: 40 epochs of batches of 128, momentum 0.9, no decay, LR 0.1 divided by 10 every 10 epochs."""
    steps = []

    class Noted(torch.optim.SGD):
        def step(self, closure=None):
            steps.append({key: self.param_groups[0][key] for key in ("lr", "momentum", "weight_decay", "nesterov")})
            return super().step(closure)

    monkeypatch.setattr("classification.studies.linear_probe.SGD", Noted)
    first = probe_by_sgd(gaussians(300, 1.5, seed=0), gaussians(50, 1.5, seed=1))
    assert len(steps) == 40 * 3  # 128, 128 and 44
    rates = [step.pop("lr") for step in steps]
    assert rates[::30] == pytest.approx([0.1, 0.01, 0.001, 0.0001]) and len(set(rates)) == 4
    assert all(step == {"momentum": 0.9, "weight_decay": 0, "nesterov": False} for step in steps)
    assert first == probe_by_sgd(gaussians(300, 1.5, seed=0), gaussians(50, 1.5, seed=1))


def test_a_class_that_only_one_split_has():
    train, test = gaussians(128, 20.0, seed=0), gaussians(50, 20.0, seed=1, classes=5)
    assert probe_by_sgd(train, test).top1 < 100


@pytest.fixture(scope="module")
def run(outputs):
    return load_run(outputs / "output" / "tiny" / "kd", device="cpu")


def test_features_are_what_the_classifier_sees(run):
    found = collect(lambda images: run.student(images, return_features=True), run.data.val)
    torch.testing.assert_close(run.student.classifier(found.pooled), found.logits)
    assert torch.equal(found.labels, torch.cat([batch.labels for batch in run.data.val]))


def test_row_of_a_run(run):
    row = probe_run(run, {DOMAIN: read_domain(DOMAIN, "")})
    assert (row["run"], row["distiller"], row["student"], row["data"]) == ("tiny/kd", "kd", "resnet8", "digits")
    assert row["own_top1"] == run.result["last_top1"]
    found = row["domains"][DOMAIN]
    assert (found["train_samples"], found["test_samples"]) == (1437, 360)
    assert 30 < found["top1"] <= found["train_top1"] + 10
    assert row == probe_run(run, {DOMAIN: read_domain(DOMAIN, "")})


def test_row_of_the_runs_teacher(run, teacher_file):
    """The same as that of its file alone, which has no result: its accuracy is measured."""
    domains = {DOMAIN: read_domain(DOMAIN, "")}
    row = probe_run(run, domains, teacher=True)
    assert (row["run"], row["distiller"], row["student"]) == (str(teacher_file), "none", "resnet14")
    itself = probe_run(load_run(teacher_file, device="cpu"), domains)
    assert row["domains"] == itself["domains"]
    assert row["own_top1"] == pytest.approx(itself["own_top1"], abs=1e-3)


def test_probing_leaves_the_student_as_it_is(run):
    before = {key: value.clone() for key, value in run.student.state_dict().items()}
    probe_run(run, {DOMAIN: read_domain(DOMAIN, "")})
    assert all(torch.equal(value, before[key]) for key, value in run.student.state_dict().items())


def rows() -> list[dict]:
    """Of two runs on two data sets, as ``probe_run`` gives them."""
    return [
        {
            "run": name,
            "distiller": name,
            "student": "resnet8",
            "data": "digits",
            "own_top1": 99.0,
            "domains": {
                domain: {"top1": top1 + place, "train_top1": 99.0, "converged": domain == "a"}
                for place, domain in enumerate(("a", "b"))
            },
        }
        for name, top1 in (("kd", 40.0), ("dkd", 60.0))
    ]


def test_table_has_a_row_a_run_and_marks_what_did_not_converge():
    lines = probe_table(rows()).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")][1:-1] == ["kd", "kd", "resnet8", "99.00", "40.00", "41.00*"]
    assert [cell.strip() for cell in lines[3].split("|")][1:-1] == ["dkd", "dkd", "resnet8", "99.00", "60.00", "61.00*"]


def test_bars_are_the_figures():
    axes = draw(rows()).axes[0]
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[40.0, 41.0], [60.0, 61.0]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
    left = np.array([[bar.get_x() for bar in bars] for bars in axes.containers])
    assert (left[0] + axes.containers[0][0].get_width() <= left[1]).all() and left[1, 0] < left[0, 1]


def test_a_long_path_does_not_leave_the_figure():
    path = f"/{'folder/' * 12}model.pth"
    rows = [{"run": run, "domains": {"stl10": {"top1": 50.0}}} for run in ("digits/kd", path)]
    first, second = (text.get_text() for text in draw(rows).legends[0].get_texts())
    assert first == "digits/kd" and len(second) == 48 and second[0] == "…" and path.endswith(second[1:])
