"""Transfer of frozen features to other data sets: the accuracy of a linear classifier on them.

Tian et al. 2020 (CRD), Zhao et al. 2022 (DKD) and Wang et al. 2024 (MCLD) transfer CIFAR-100 students to STL-10 and
Tiny-ImageNet this way.

Shape legend: N samples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from classification.data.image_folders import FileData
from classification.models import ModelOutput
from classification.studies.runs import Answers, FinishedRun, collect
from classification.studies.transfer_data import Splits, transfer_data
from kd_det.common.environment import versions
from kd_det.common.errors import SetupError
from kd_det.common.figures import save_figure, tidy
from kd_det.common.files import write_csv, write_json
from kd_det.common.images import UnreadableImageError
from kd_det.common.tables import markdown

NAME = "linear_probe"
LABEL = 48  # characters of a run's name in the figure
MAX_ITERATIONS = 1000  # of L-BFGS
# Of SGD: Zhao et al. 2022, section A.7.
EPOCHS, BATCH_SIZE, LR, MOMENTUM, LR_PERIOD, LR_FACTOR = 40, 128, 0.1, 0.9, 10, 0.1


class Accuracy(NamedTuple):
    """The accuracy of one probe, in percent."""

    top1: float  # on the test split
    train_top1: float
    converged: bool  # L-BFGS ended before MAX_ITERATIONS; the weights of SGD stayed finite


def probe_by_sgd(train: Answers, test: Answers, seed: int = 0) -> Accuracy:
    """One linear layer on the penultimate features as they are, by SGD on the cross-entropy.

    40 epochs at batch 128, momentum 0.9, no weight decay, learning rate 0.1, divided by 10 every 10 epochs. The last
    batch of an epoch may be smaller. The test split is used once, after the last epoch.

    Source: Zhao et al. 2022, section A.7. The initialisation is torch's.

    Args:
        train, test: the features (N, D) and labels of both splits.
        seed: of the initialisation and of the order of the samples.
    """
    features, labels = train.pooled, train.labels
    generator = torch.Generator().manual_seed(seed)
    layer = _linear(features.shape[1], int(torch.cat((labels, test.labels)).max()) + 1, generator)
    optimizer = SGD(layer.parameters(), LR, MOMENTUM)
    scheduler = StepLR(optimizer, LR_PERIOD, LR_FACTOR)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
        scheduler.step()
    finite = all(bool(parameter.isfinite().all()) for parameter in layer.parameters())
    return Accuracy(_top1(layer, test), _top1(layer, train), finite)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """torch's linear layer with torch's initialisation, from ``generator`` instead of the global one."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


@torch.no_grad()
def _top1(layer: nn.Linear, split: Answers) -> float:
    right: Tensor = layer(split.pooled).argmax(1) == split.labels
    return 100 * right.double().mean().item()


def probe_by_lbfgs(train: Answers, test: Answers) -> Accuracy:
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


# A probe gets the answers to the training split and to the test split.
PROBES: dict[str, Callable[[Answers, Answers], Accuracy]] = {"sgd": probe_by_sgd, "lbfgs": probe_by_lbfgs}


def probe_run(
    run: FinishedRun, domains: Mapping[str, Splits | FileData], kind: str = "sgd", *, teacher: bool = False
) -> dict[str, Any]:
    """One run's row: its names, its own accuracy, and for each domain ``Accuracy`` and the samples of the splits.

    Args:
        run: the run whose student is probed.
        domains: by name, as ``read_domain`` gives them.
        kind: one of ``PROBES``.
        teacher: probe the run's teacher instead.

    Raises:
        SetupError: an image cannot be read; or the run has no teacher, or it cannot be loaded.
    """
    network: Callable[[Tensor], ModelOutput]
    if teacher:
        network, node = run.teacher(), run.cfg.TEACHER
        name, distiller, own = node.WEIGHTS or f"{node.NAME}, pretrained", "none", None
    else:
        network, node = partial(run.student, return_features=True), run.cfg.STUDENT
        name, distiller, own = run.name, run.cfg.DISTILLER, run.result["last_top1"]
    if own is None:
        answers = collect(network, run.data.val)
        own = 100 * (answers.logits.argmax(1) == answers.labels).double().mean().item()
    row: dict[str, Any] = {
        "run": name,
        "distiller": distiller,
        "student": node.NAME,
        "data": run.cfg.DATA.NAME,
        "own_top1": own,
        "probe": kind,
        "domains": {},
    }
    for name, content in domains.items():
        try:
            train, test = (collect(network, split) for split in transfer_data(content, run))
        except UnreadableImageError as error:
            raise SetupError(f"{name}: {error}") from error
        samples = {"train_samples": len(train.labels), "test_samples": len(test.labels)}
        row["domains"][name] = {**PROBES[kind](train, test)._asdict(), **samples}
    return row


def write_probes(folder: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Writes linear_probe.json, .csv, .png and .svg into ``folder``."""
    pictures = save_figure(draw(rows), folder, NAME)
    content = {"kind": NAME, "max_iterations": MAX_ITERATIONS, "rows": list(rows), "versions": versions()}
    write_json(folder / f"{NAME}.json", content)
    header = ["run", "distiller", "student", "data", "own_top1", "probe", "domain", *Accuracy._fields]
    table = [
        [row[key] for key in header[:6]] + [domain] + [figures[key] for key in Accuracy._fields]
        for row in rows
        for domain, figures in row["domains"].items()
    ]
    return [folder / f"{NAME}.json", write_csv(folder / f"{NAME}.csv", header, table), *pictures]


def probe_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with one row for each run; "*" marks one that did not converge."""
    body = [
        [row["run"], row["distiller"], row["student"], f"{row['own_top1']:.2f}"]
        + [f"{figures['top1']:.2f}{'' if figures['converged'] else '*'}" for figures in row["domains"].values()]
        for row in rows
    ]
    headers = ["run", "distiller", "model", f"{rows[0]['data']} (own)", *rows[0]["domains"]]
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
        bars = axes.bar(left, heights, 0.92 * width, label=_shortened(row["run"]), color=f"C{place}")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel("linear probe, top-1 in %")
    axes.set_ylim(0, 105)
    tidy(axes)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return figure


def _shortened(name: str) -> str:
    """A path of a model may be wider than the figure; its end tells most."""
    return name if len(name) <= LABEL else f"…{name[1 - LABEL :]}"
