"""The embedding is seeded, its figures equal those of naive loops, and both runs show the same samples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from classification.studies.runs import Answers, load_run
from classification.studies.tsne import Embedding, Settings, choose_samples, compare, draw, embed, separation
from kd_det.common.errors import SetupError


def clusters(samples: int, distance: float, seed: int = 0) -> Answers:
    """Features of three classes."""
    labels = torch.arange(samples) % 3
    noise = torch.randn(samples, 5, generator=torch.Generator().manual_seed(seed))
    return Answers(distance * torch.eye(3, 5)[labels] + noise, torch.zeros(samples, 3), labels)


def naive_silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    values = []
    for point, label in zip(points, labels, strict=True):
        distances = np.linalg.norm(points - point, axis=1)
        own = distances[labels == label].sum() / ((labels == label).sum() - 1)
        nearest = min(distances[labels == other].mean() for other in set(labels) - {label})
        values.append((nearest - own) / max(nearest, own))
    return float(np.mean(values))


def naive_knn(points: np.ndarray, labels: np.ndarray) -> float:
    right = 0
    for place, point in enumerate(points):
        distances = np.linalg.norm(points - point, axis=1)
        distances[place] = np.inf
        votes = Counter(labels[np.argsort(distances)[:10]].tolist())
        right += min(votes, key=lambda label: (-votes[label], label)) == labels[place]
    return 100 * right / len(labels)


def test_figures_are_those_of_naive_loops():
    answers = clusters(60, 1.5)
    points, labels = answers.pooled.double().numpy(), answers.labels.numpy()
    found = separation(points, labels)
    assert found["silhouette"] == pytest.approx(naive_silhouette(points, labels), abs=1e-9)
    assert found["knn_top1"] == pytest.approx(naive_knn(points, labels))
    assert 40 < found["knn_top1"] < 100


def test_far_clusters_come_apart_and_shuffled_labels_do_not():
    answers, everything = clusters(90, 50.0), torch.arange(90)
    settings = Settings(perplexity=10.0)
    apart = embed("apart", answers, everything, settings).figures
    assert apart["features"]["silhouette"] > 0.9
    assert apart["embedding"]["silhouette"] > 0.5
    assert apart["embedding"]["knn_top1"] == apart["features"]["knn_top1"] == 100
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    mixed = embed("mixed", answers._replace(labels=answers.labels[order]), everything, settings).figures
    assert mixed["embedding"]["silhouette"] < 0.1 and mixed["embedding"]["knn_top1"] < 60


def test_the_seed_is_the_embeddings():
    answers, everything = clusters(60, 2.0), torch.arange(60)
    first, again = (embed("run", answers, everything, Settings(perplexity=10.0, seed=1)) for _ in range(2))
    assert first.points.shape == (60, 2)
    np.testing.assert_array_equal(first.points, again.points)
    assert first.figures == again.figures


def test_samples_by_hand():
    labels = torch.arange(400) % 20
    chosen = choose_samples(labels, 20, Settings(classes=4, samples=40, perplexity=5.0))
    assert sorted(set(labels[chosen].tolist())) == [0, 5, 10, 15]
    of_these = [place for place in range(400) if place % 20 in (0, 5, 10, 15)]
    assert len(chosen) == len(set(chosen.tolist()) & set(of_these)) == 40
    assert chosen.tolist() == sorted(chosen.tolist())
    assert choose_samples(labels, 20, Settings(classes=20)).tolist() == list(range(400))
    assert choose_samples(labels, 20, Settings()).tolist() == list(range(400))
    assert len(choose_samples(labels % 3, 3, Settings(classes=20))) == 400


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(classes=1), "--classes 1: give 2 or more, or 0 for all"),
        (Settings(classes=-2), "--classes -2: give 2 or more"),
        (Settings(samples=10), "--samples 10: give more than 10"),
        (Settings(perplexity=0.0), "--perplexity is 0.0"),
        (Settings(seed=-1), "--seed -1"),
    ],
)
def test_settings_that_cannot_work(settings, expected):
    with pytest.raises(SetupError, match=expected):
        settings.check()


@pytest.mark.parametrize("settings", [Settings(perplexity=60.0), Settings(perplexity=5.0, classes=2)])
def test_too_few_samples(settings):
    """60 samples, of which label 1 has none."""
    with pytest.raises(SetupError, match=r"--perplexity .* with \d+ samples"):
        choose_samples(torch.arange(60) % 2 * 2, 2, settings)


@pytest.mark.parametrize(("runs", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_many_runs_and_classes(runs, grid):
    """100 classes have 100 colours and no legend; the panels lie in rows of three at most."""
    labels, points = np.arange(100), np.arange(200.0).reshape(100, 2)
    figures = {"embedding": {"silhouette": 0.25, "knn_top1": 75.0}}
    names = [f"run {number}" for number in range(runs)]
    figure = draw([Embedding(name, labels, labels, points, figures) for name in names], [f"c{i}" for i in range(100)])
    assert len(figure.axes) == runs and not figure.legends
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == grid
    colours = {tuple(group.get_facecolor()[0]) for group in figure.axes[-1].collections}
    assert len(colours) == 100 and len(figure.axes[-1].collections) == 100


def test_two_runs(outputs):
    runs = [load_run(outputs / "output" / "tiny" / method, device="cpu") for method in ("kd", "dkd")]
    settings = Settings(classes=5, samples=60, perplexity=10.0)
    first, second = compare(runs, settings)
    np.testing.assert_array_equal(first.indices, second.indices)
    labels = torch.cat([batch.labels for batch in runs[0].data.val])
    np.testing.assert_array_equal(first.labels, labels[torch.from_numpy(first.indices)])
    assert set(first.labels) == {0, 2, 4, 6, 8}
    assert not np.array_equal(first.points, second.points)
    same, too = compare([runs[0], runs[0]], settings)
    np.testing.assert_array_equal(same.points, too.points)
    np.testing.assert_array_equal(same.points, first.points)


def test_picture_has_every_point_and_a_legend_of_classes():
    labels, points = np.array([0, 2, 2, 0]), np.arange(8.0).reshape(4, 2)
    figures = {"embedding": {"silhouette": 0.25, "knn_top1": 75.0}}
    figure = draw([Embedding(name, labels, labels, points, figures) for name in ("a", "b")], ("cat", "cow", "dog"))
    for axes, name in zip(figure.axes, "ab", strict=True):
        assert axes.get_title() == f"{name}\nsilhouette 0.250, kNN 75.0 %"
        drawn = {tuple(point) for group in axes.collections for point in group.get_offsets()}
        assert drawn == set(map(tuple, points))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog"]
