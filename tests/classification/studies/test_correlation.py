"""Correlation matrices by numpy, and the comparison of two runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from classification.studies.correlation import class_means, compare, correlation_matrix, draw
from classification.studies.runs import Answers, check_same_samples, load_run
from kd_det.common.errors import SetupError


def test_matrix_is_numpys():
    numbers = np.random.default_rng(0)
    logits = numbers.normal(size=(50, 7)) @ numbers.normal(size=(7, 7)) + 5
    found = correlation_matrix(torch.from_numpy(logits), "abcdefg")
    np.testing.assert_allclose(found, np.corrcoef(logits, rowvar=False), atol=1e-12)


def test_matrix_by_hand():
    """Classes that rise together, one that falls, over three samples."""
    logits = torch.tensor([[0.0, 1.0, 3.0], [1.0, 3.0, 2.0], [2.0, 5.0, 1.0]])
    expected = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(correlation_matrix(logits, "abc"), expected)


def test_a_constant_logit_is_named():
    logits = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    with pytest.raises(SetupError, match="class 'dog' is the same for all 2 samples"):
        correlation_matrix(logits, ["cat", "dog"])


@pytest.fixture(scope="module")
def runs(outputs):
    return [load_run(outputs / "output" / "tiny" / method, device="cpu") for method in ("kd", "dkd")]


def test_two_runs(runs):
    """Mean and matrix by numpy, from logits gathered by hand."""
    results = compare(runs)
    images = torch.cat([batch.images for batch in runs[0].data.val])
    for run, result in zip(runs, results, strict=True):
        with torch.no_grad():
            logits = [run.teacher()(images).logits, run.student(images)]
        teacher, student = (np.corrcoef(z.double().numpy(), rowvar=False) for z in logits)
        np.testing.assert_allclose(result["difference"], np.abs(teacher - student), atol=1e-5)
        assert result["mean"] == pytest.approx(np.abs(teacher - student).mean(), abs=1e-5)
        assert result["max"] == pytest.approx(np.abs(teacher - student).max(), abs=1e-5)
        assert 0 < result["mean"] < 1
    assert results[0]["mean"] != results[1]["mean"]


def test_class_means_by_hand():
    logits = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 0.0]])
    answers = Answers(logits, logits, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(class_means(answers, "ab"), torch.tensor([[2.0, 4.0], [5.0, 0.0]]).double())
    with pytest.raises(SetupError, match="class 'c' has no validation sample"):
        class_means(answers, "abc")


def test_class_means_of_runs(runs):
    """Three runs; the diagonal, where the labels' own logits are, is left out."""
    *_, result = compare([*runs, runs[0]], "class-mean")
    images, labels = (torch.cat([batch[part] for batch in runs[0].data.val]) for part in (0, 1))
    with torch.no_grad():
        teacher, student = (runs[0].teacher()(images).logits, runs[0].student(images))
    for row in range(10):
        expected = (teacher[labels == row].mean(0) - student[labels == row].mean(0)).abs()
        expected[row] = 0
        torch.testing.assert_close(result["difference"][row].float(), expected, rtol=1e-4, atol=1e-4)
    assert result["max"] > 0


def test_a_run_and_itself(runs):
    first, second = compare([runs[0], runs[0]])
    assert torch.equal(first["difference"], second["difference"])


@pytest.mark.parametrize("mode", ["correlation", "class-mean"])
def test_a_teacher_and_itself(teacher_file, mode):
    """A student that is its own teacher: no difference at all."""
    run = load_run(teacher_file, ["TEACHER.NAME", "resnet14", "TEACHER.WEIGHTS", teacher_file], device="cpu")
    for result in compare([run, run], mode):
        assert result["mean"] == result["max"] == 0
        assert not result["difference"].any()


def test_other_teachers_are_refused(outputs, teacher_file, runs):
    with pytest.raises(SetupError, match=r"TEACHER\.NAME of .*teacher is '', of tiny/kd 'resnet14'"):
        compare([load_run(teacher_file, device="cpu"), runs[0]])
    other = load_run(outputs / "output" / "tiny" / "dkd", ["TEACHER.WEIGHTS", "other.pth"], device="cpu")
    with pytest.raises(SetupError, match=r"TEACHER\.WEIGHTS of tiny/kd is .*, of tiny/dkd 'other\.pth'"):
        compare([runs[0], other])


def test_no_teacher_at_all(teacher_file):
    run = load_run(teacher_file, device="cpu")
    with pytest.raises(SetupError, match=r"set TEACHER\.NAME and TEACHER\.WEIGHTS"):
        compare([run])


def test_other_data_are_refused():
    runs = [
        SimpleNamespace(
            name=name,
            cfg=SimpleNamespace(DATA=SimpleNamespace(NAME=name)),
            data=SimpleNamespace(class_names=("a",) * classes, val=SimpleNamespace(samples=9)),
        )
        for name, classes in (("digits", 10), ("cifar100", 100))
    ]
    with pytest.raises(SetupError, match="digits validates on 'digits', 10 classes, 9 images, cifar100 on 'cifar100'"):
        check_same_samples(*runs)
    check_same_samples(runs[0], runs[0])


def result(name: str, difference: torch.Tensor) -> dict:
    return {"run": name, "mean": difference.mean().item(), "max": difference.max().item(), "difference": difference}


def test_one_colour_scale():
    small, large = torch.eye(3) * 0.1, torch.eye(3) * 0.4
    *panels, bar = draw([result("small", small), result("large", large)], "abc").axes
    for panel, matrix in zip(panels, (small, large), strict=True):
        (image,) = panel.images
        np.testing.assert_array_equal(image.get_array(), matrix)
        assert image.get_clim() == (0, pytest.approx(0.4))
        assert [text.get_text() for text in panel.get_xticklabels()] == list("abc")
    assert "mean 0.0333" in panels[0].get_title()
    assert bar.get_ylim() == (0, pytest.approx(0.4))


def test_names_of_many_classes_are_left_out():
    names = [f"class {number}" for number in range(100)]
    panel = draw([result("many", torch.eye(100))], names).axes[0]
    assert "class 1" not in [text.get_text() for text in panel.get_xticklabels()]
