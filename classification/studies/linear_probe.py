"""Transfer of frozen features to other data sets: the accuracy of a linear classifier on them.

Tian et al. 2020 (CRD) and Zhao et al. 2022 (DKD) transfer CIFAR-100 students to STL-10 and Tiny-ImageNet this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classification.data.image_folders import FileData
from classification.studies.runs import Answers, FinishedRun, collect
from classification.studies.transfer_data import Splits, transfer_data
from kd_det.common.environment import versions
from kd_det.common.errors import SetupError
from kd_det.common.figures import save_figure, tidy
from kd_det.common.files import write_csv, write_json
from kd_det.common.images import UnreadableImageError
from kd_det.common.tables import markdown

NAME = "linear_probe"
MAX_ITERATIONS = 1000


class Accuracy(NamedTuple):
    """The accuracy of one probe, in percent."""

    top1: float  # on the test split
    train_top1: float
    converged: bool  # the fit ended before MAX_ITERATIONS


def probe(train: Answers, test: Answers) -> Accuracy:
    """Multinomial logistic regression (scikit-learn, L-BFGS, C = 1) on the penultimate features.

    Each feature is standardised to mean 0 and variance 1 over the training split. The fit starts from zero and uses no
    random numbers, so there is no seed to choose. The test split is used once, after the fit.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    features, labels = train.pooled.double().numpy(), train.labels.numpy()
    classifier.fit(features, labels)
    on_test = classifier.score(test.pooled.double().numpy(), test.labels.numpy())
    iterations = int(np.max(classifier[-1].n_iter_))
    return Accuracy(100 * on_test, 100 * classifier.score(features, labels), iterations < MAX_ITERATIONS)


def probe_run(run: FinishedRun, domains: Mapping[str, Splits | FileData]) -> dict[str, Any]:
    """One run's row: its names, its own accuracy, and for each domain ``Accuracy`` and the samples of the splits.

    Args:
        run: the run whose student is probed.
        domains: by name, as ``read_domain`` gives them.

    Raises:
        SetupError: an image cannot be read.
    """
    row: dict[str, Any] = {
        "run": run.name,
        "distiller": run.cfg.DISTILLER,
        "student": run.cfg.STUDENT.NAME,
        "data": run.cfg.DATA.NAME,
        "own_top1": run.result["last_top1"],
        "domains": {},
    }
    for name, content in domains.items():
        try:
            train, test = (
                collect(partial(run.student, return_features=True), split) for split in transfer_data(content, run)
            )
        except UnreadableImageError as error:
            raise SetupError(f"{name}: {error}") from error
        samples = {"train_samples": len(train.labels), "test_samples": len(test.labels)}
        row["domains"][name] = {**probe(train, test)._asdict(), **samples}
    return row


def write_probes(folder: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Writes linear_probe.json, .csv, .png and .svg into ``folder``."""
    pictures = save_figure(draw(rows), folder, NAME)
    content = {"kind": NAME, "max_iterations": MAX_ITERATIONS, "rows": list(rows), "versions": versions()}
    write_json(folder / f"{NAME}.json", content)
    header = ["run", "distiller", "student", "data", "own_top1", "domain", *Accuracy._fields]
    table = [
        [row[key] for key in header[:5]] + [domain] + [figures[key] for key in Accuracy._fields]
        for row in rows
        for domain, figures in row["domains"].items()
    ]
    return [folder / f"{NAME}.json", write_csv(folder / f"{NAME}.csv", header, table), *pictures]


def probe_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with one row for each run; "*" marks a fit that did not converge."""
    body = [
        [row["run"], row["distiller"], row["student"], f"{row['own_top1']:.2f}"]
        + [f"{figures['top1']:.2f}{'' if figures['converged'] else '*'}" for figures in row["domains"].values()]
        for row in rows
    ]
    headers = ["run", "distiller", "student", f"{rows[0]['data']} (own)", *rows[0]["domains"]]
    return markdown(body, headers)


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Bars of top-1, one group for each data set and one colour for each run, with the numbers above them."""
    domains = list(rows[0]["domains"])
    size = max(5.0, 1.5 + len(domains) * (0.6 + 0.7 * len(rows))), 4.0 + 0.2 * len(rows)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        heights = [row["domains"][domain]["top1"] for domain in domains]
        left = np.arange(len(domains)) - 0.4 + (place + 0.5) * width
        bars = axes.bar(left, heights, 0.92 * width, label=row["run"], color=f"C{place}")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel("linear probe, top-1 in %")
    axes.set_ylim(0, 105)
    tidy(axes)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return figure
