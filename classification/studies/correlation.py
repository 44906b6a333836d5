"""How a student's logits correlate compared with its teacher's: the difference of the correlation matrices.

As in Tian et al. 2020 (CRD) and Zhao et al. 2022 (DKD). The correlation of two classes is Pearson's correlation of
their logits over the validation samples. Shape legend: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from classification.studies.runs import FinishedRun, check_same_samples, check_same_teacher, collect
from kd_det.common.errors import SetupError
from kd_det.common.figures import save_figure
from kd_det.common.files import write_csv, write_json

NAME = "correlation"
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


def compare(first: FinishedRun, second: FinishedRun) -> list[dict[str, Any]]:
    """|teacher's − student's| correlation matrix of two runs with one teacher, over the validation samples.

    Returns:
        For each run: "run", "distiller", "student", "difference" (C, C) float64 from 0 to 2, and its "mean" and "max".
        The mean is over all C × C entries, the zeros of the diagonal included.

    Raises:
        SetupError: the runs have different data, classes or teachers, or no teacher, or a logit is constant.
    """
    check_same_samples(first, second)
    check_same_teacher(first, second)
    names = first.data.class_names
    results = []
    for run in (first, second):
        # Each run uses its own images, because they may differ in normalisation or size.
        teacher, student = run.teacher(), partial(run.student, return_features=True)
        matrices = [correlation_matrix(collect(network, run.data.val).logits, names) for network in (teacher, student)]
        difference = (matrices[0] - matrices[1]).abs()
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


def write_comparison(folder: Path, results: Sequence[dict[str, Any]], run: FinishedRun) -> list[Path]:
    """Writes correlation.json (numbers), difference_1.csv, difference_2.csv (matrices), correlation.png and .svg.

    Args:
        folder: where to write.
        results: of ``compare``.
        run: one of its runs, for classes and teacher.
    """
    names = run.data.class_names
    paths = save_figure(draw(results, names), folder, NAME)
    figures = [{key: value for key, value in result.items() if key != "difference"} for result in results]
    teacher = {"name": run.cfg.TEACHER.NAME, "weights": run.cfg.TEACHER.WEIGHTS}
    about = {"kind": NAME, "teacher": teacher, "data": run.cfg.DATA.NAME, "samples": run.data.val.samples}
    write_json(folder / f"{NAME}.json", {**about, "class_names": list(names), "runs": figures})
    for number, result in enumerate(results, 1):
        rows = ([name, *values] for name, values in zip(names, result["difference"].tolist(), strict=True))
        paths.append(write_csv(folder / f"difference_{number}.csv", ["class", *names], rows))
    return [folder / f"{NAME}.json", *paths]


def draw(results: Sequence[dict[str, Any]], class_names: Sequence[str]) -> Figure:
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
        axes.set_xlabel("class")
    panels[0].set_ylabel("class")
    figure.colorbar(image, ax=panels, shrink=0.85, label="|teacher's − student's correlation|")
    return figure
