"""How a student's logits relate compared with its teacher's: the difference of two C x C matrices.

``correlation`` has Pearson's correlation of every two classes' logits over the validation samples, as in Tian et al.
2020 (CRD). ``class-mean`` has the mean logits of the samples of every class, which is what the published code of Zhao
et al. 2022 (DKD, figure 4) draws. Shape legend: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from classification.studies.runs import Answers, FinishedRun, check_same_samples, check_same_teacher, collect
from kd_det.common.errors import SetupError
from kd_det.common.figures import save_figure
from kd_det.common.files import write_csv, write_json

NAME = "correlation"
Mode = Literal["correlation", "class-mean"]
LABELS: dict[Mode, str] = {"correlation": "correlation", "class-mean": "mean logit"}
NAMED_CLASSES = 30  # more names would overlap


def correlation_matrix(logits: Tensor, class_names: Sequence[str]) -> Tensor:
    """Pearson's correlation between the logits of every two classes, over the samples.

    Args:
        logits: (N, C), N >= 2.
        class_names: C names, for the error.

    Returns:
        (C, C) float64, with ones on the diagonal.

    Raises:
        SetupError: a class has the same logit for all samples, so its correlation is not defined.
    """
    constant = (logits == logits[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise SetupError(
            f"the logit of class {class_names[constant[0]]!r} is the same for all {len(logits)} samples, so its "
            "correlation is not defined. Was this network trained?"
        )
    return torch.corrcoef(logits.double().T)


def class_means(answers: Answers, class_names: Sequence[str]) -> Tensor:
    """The mean logits of the samples of every class.

    Args:
        answers: logits (N, C) and labels (N,).
        class_names: C names, for the error.

    Returns:
        (C, C) float64: row c is the mean over the samples of class c.

    Raises:
        SetupError: a class has no sample.
    """
    counts = answers.labels.bincount(minlength=len(class_names))
    if (counts == 0).any():
        raise SetupError(f"class {class_names[int(counts.argmin())]!r} has no validation sample, so no mean logits.")
    sums = torch.zeros(len(class_names), answers.logits.shape[1], dtype=torch.float64)
    return sums.index_add_(0, answers.labels, answers.logits.double()) / counts.unsqueeze(1)


def _difference(mode: Mode, teacher: Answers, student: Answers, class_names: Sequence[str]) -> Tensor:
    if mode == "correlation":
        first, second = (correlation_matrix(answers.logits, class_names) for answers in (teacher, student))
        return (first - second).abs()
    # Without the diagonal, as in the published code: the labels' own logits are far larger than the others.
    first, second = (class_means(answers, class_names) for answers in (teacher, student))
    return (first - second).abs().fill_diagonal_(0)


def compare(runs: Sequence[FinishedRun], mode: Mode = "correlation") -> list[dict[str, Any]]:
    """|teacher's − student's| matrix of each of the runs, which have one teacher, over the validation samples.

    Returns:
        For each run: "run", "distiller", "student", "difference" (C, C) float64, and its "mean" and "max". The mean is
        over all C × C entries, the zeros of the diagonal included.

    Raises:
        SetupError: the runs have different data, classes or teachers, or no teacher, or a logit is constant.
    """
    first, *others = runs
    check_same_samples(first, *others)
    check_same_teacher(first, *others)
    names = first.data.class_names
    results = []
    for run in runs:
        # Each run uses its own images, because they may differ in normalisation or size.
        teacher, student = run.teacher(), partial(run.student, return_features=True)
        difference = _difference(mode, collect(teacher, run.data.val), collect(student, run.data.val), names)
        results.append(
            {
                "run": run.name,
                "distiller": run.cfg.DISTILLER,
                "student": run.cfg.STUDENT.NAME,
                "mean": difference.mean().item(),
                "max": difference.max().item(),
                "difference": difference,
            }
        )
    return results


def write_comparison(folder: Path, results: Sequence[dict[str, Any]], run: FinishedRun, mode: Mode) -> list[Path]:
    """Writes correlation.json (numbers), difference_1.csv and so on (matrices), correlation.png and .svg.

    Args:
        folder: where to write.
        results: of ``compare``.
        run: one of its runs, for classes and teacher.
        mode: that of ``compare``.
    """
    names = run.data.class_names
    paths = save_figure(draw(results, names, mode), folder, NAME)
    figures = [{key: value for key, value in result.items() if key != "difference"} for result in results]
    teacher = {"name": run.cfg.TEACHER.NAME, "weights": run.cfg.TEACHER.WEIGHTS}
    about = {"kind": NAME, "mode": mode, "teacher": teacher, "data": run.cfg.DATA.NAME, "samples": run.data.val.samples}
    write_json(folder / f"{NAME}.json", {**about, "class_names": list(names), "runs": figures})
    for number, result in enumerate(results, 1):
        rows = ([name, *values] for name, values in zip(names, result["difference"].tolist(), strict=True))
        paths.append(write_csv(folder / f"difference_{number}.csv", ["class", *names], rows))
    return [folder / f"{NAME}.json", *paths]


def draw(results: Sequence[dict[str, Any]], class_names: Sequence[str], mode: Mode = "correlation") -> Figure:
    """The matrices side by side, with one colour scale for all."""
    top = max(result["max"] for result in results) or 1.0
    figure = Figure((5 * len(results) + 1, 5.2), layout="compressed")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        image = axes.imshow(result["difference"], cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
        axes.set_title(f"{result['run']}\nmean {result['mean']:.4f}", fontsize=10)
        if len(class_names) <= NAMED_CLASSES:
            rotation = 90 if max(map(len, class_names)) > 2 else 0
            axes.set_xticks(range(len(class_names)), class_names, rotation=rotation, fontsize=8)
            axes.set_yticks(range(len(class_names)), class_names if axes is panels[0] else [], fontsize=8)
        axes.set_xlabel("class of the logit")
    panels[0].set_ylabel("class of the samples" if mode == "class-mean" else "class of the other logit")
    figure.colorbar(image, ax=panels, shrink=0.85, label=f"|teacher's − student's {LABELS[mode]}|")
    return figure
