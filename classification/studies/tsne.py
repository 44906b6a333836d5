"""Penultimate features in two dimensions, by t-SNE (van der Maaten and Hinton 2008), and how well classes separate.

Shape legend: N samples, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from classification.studies.runs import Answers, FinishedRun, check_same_samples, collect
from kd_det.common.environment import versions
from kd_det.common.errors import SetupError, positive
from kd_det.common.figures import save_figure
from kd_det.common.files import write_csv, write_json

NAME = "tsne"
NAMED_CLASSES = 20  # more have no legend: their colours are hard to distinguish
COLUMNS = 3  # panels side by side
NEIGHBOURS = 10


class Settings(NamedTuple):
    """The samples that are drawn, and the settings of t-SNE."""

    classes: int = 0  # how many classes, evenly spread over the data's; 0: all
    samples: int = 2000  # at most, drawn at random from the validation samples of these classes
    perplexity: float = 30.0
    seed: int = 0  # of the samples and of t-SNE

    def check(self) -> None:
        """Raises ``SetupError`` for a setting that cannot work."""
        if self.classes < 0 or self.classes == 1:
            raise SetupError(f"--classes {self.classes}: give 2 or more, or 0 for all.")
        if self.samples <= NEIGHBOURS:
            raise SetupError(f"--samples {self.samples}: give more than {NEIGHBOURS}.")
        if self.seed < 0:
            raise SetupError(f"--seed {self.seed} is negative; give 0 or more.")
        positive("--perplexity", self.perplexity)


class Embedding(NamedTuple):
    """One run's samples in two dimensions."""

    run: str
    indices: np.ndarray  # (N,) int64: positions in the validation split
    labels: np.ndarray  # (N,) int64
    points: np.ndarray  # (N, 2) float32
    figures: dict[str, dict[str, float]]  # ``separation`` in the "embedding" and in the "features"


def choose_samples(labels: Tensor, num_classes: int, settings: Settings) -> Tensor:
    """The positions of the samples to draw: int64 (N,), sorted, the same for every run.

    Args:
        labels: of all samples, int64 (all,).
        num_classes: number of the data's classes.
        settings: how many samples of how many classes, and the seed.

    Raises:
        SetupError: there are too few samples for the perplexity, or all are of one class.
    """
    wanted = min(settings.classes or num_classes, num_classes)
    classes = torch.tensor([place * num_classes // wanted for place in range(wanted)])
    places = torch.isin(labels, classes).nonzero().flatten()
    count = min(len(places), settings.samples)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(settings.seed))
    chosen = places[order[:count].sort().values]
    if count <= max(settings.perplexity, NEIGHBOURS) or len(labels[chosen].unique()) < 2:
        raise SetupError(
            f"--perplexity {settings.perplexity:g} with {count} samples of {wanted} classes: t-SNE needs more samples "
            f"than its perplexity and than {NEIGHBOURS}, of two classes or more. Lower it, or raise --samples."
        )
    return chosen


def separation(points: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well the classes separate, in any space.

    Args:
        points: (N, D), N above ``NEIGHBOURS``.
        labels: (N,), of at least two classes and fewer than N.

    Returns:
        "silhouette" (Rousseeuw 1987; mean over the samples, from -1 to 1; higher: better separated) and "knn_top1":
        the percentage of samples whose class is the most frequent one among their 10 nearest neighbours.
    """
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(points).kneighbors(return_distance=False)
    voted = torch.from_numpy(labels[neighbours]).mode(1).values.numpy()
    return {
        "silhouette": float(silhouette_score(points, labels)),
        "knn_top1": 100 * float((voted == labels).mean()),
    }


def embed(name: str, answers: Answers, chosen: Tensor, settings: Settings) -> Embedding:
    """scikit-learn's t-SNE, initialised with the first two principal components. The same seed gives the same points.

    Args:
        name: the run's name.
        answers: to the whole validation split.
        chosen: of ``choose_samples``.
        settings: perplexity and seed.
    """
    features, labels = answers.pooled[chosen].double().numpy(), answers.labels[chosen].numpy()
    tsne = TSNE(perplexity=settings.perplexity, init="pca", learning_rate="auto", random_state=settings.seed)
    points = tsne.fit_transform(features)
    figures = {"embedding": separation(points, labels), "features": separation(features, labels)}
    return Embedding(name, chosen.numpy(), labels, points, figures)


def compare(runs: Sequence[FinishedRun], settings: Settings) -> list[Embedding]:
    """The embeddings of the same samples by each of the runs.

    Raises:
        SetupError: the runs have different data, or the settings do not fit the data.
    """
    settings.check()
    check_same_samples(*runs)
    embeddings = []
    for run in runs:
        answers = collect(partial(run.student, return_features=True), run.data.val)
        chosen = choose_samples(answers.labels, run.data.num_classes, settings)
        embeddings.append(embed(run.name, answers, chosen, settings))
    return embeddings


def write_comparison(folder: Path, embeddings: Sequence[Embedding], run: FinishedRun, settings: Settings) -> list[Path]:
    """Writes tsne.json (numbers), tsne.csv (points), tsne.png and tsne.svg.

    Args:
        folder: where to write.
        embeddings: of ``compare``.
        run: one of its runs, for the class names.
        settings: those of ``compare``.
    """
    names = run.data.class_names
    pictures = save_figure(draw(embeddings, names), folder, NAME)
    about = {"kind": NAME, "data": run.cfg.DATA.NAME, "settings": settings._asdict(), "neighbours": NEIGHBOURS}
    runs = [{"run": each.run, "samples": len(each.labels), **each.figures} for each in embeddings]
    write_json(folder / f"{NAME}.json", {**about, "runs": runs, "versions": versions()})
    rows = (
        [each.run, index, names[label], *point]
        for each in embeddings
        for index, label, point in zip(each.indices, each.labels, each.points.tolist(), strict=True)
    )
    points = write_csv(folder / f"{NAME}.csv", ["run", "sample", "class", "x", "y"], rows)
    return [folder / f"{NAME}.json", points, *pictures]


def draw(embeddings: Sequence[Embedding], class_names: Sequence[str]) -> Figure:
    """The embeddings side by side, one colour for each class; without scales, because t-SNE's have no meaning."""
    present = np.unique(embeddings[0].labels)
    named = len(present) <= NAMED_CLASSES
    columns = 2 if len(embeddings) == 4 else min(COLUMNS, len(embeddings))
    rows = -(-len(embeddings) // columns)
    figure = Figure((5 * columns + 1.5 * named, 5.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[len(embeddings) :]:
        unused.remove()
    colours = _colours(len(present))
    for axes, each in zip(panels, embeddings, strict=False):
        for place, label in enumerate(present):
            points = each.points[each.labels == label]
            axes.scatter(*points.T, s=12 if named else 6, color=colours[place], label=class_names[label], linewidths=0)
        here = each.figures["embedding"]
        axes.set_title(f"{each.run}\nsilhouette {here['silhouette']:.3f}, kNN {here['knn_top1']:.1f} %", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    if named:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, title="class", loc="outside right center", markerscale=2, frameon=False, fontsize=9
        )
    return figure


def _colours(count: int) -> list[tuple[float, ...]]:
    """A colour for each class: different ones up to 20, then a rainbow."""
    if count <= NAMED_CLASSES:
        return [colormaps["tab10" if count <= 10 else "tab20"](place) for place in range(count)]
    return [colormaps["gist_rainbow"](place / (count - 1)) for place in range(count)]
