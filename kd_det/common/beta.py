"""A teacher's confidence in its targets, the beta of DKD that follows from it, and the report of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_det.common.figures import save_figure, tidy
from kd_det.common.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (mean gap over the training samples, beta) of six teachers on CIFAR-100 at T = 4 (Zhao et al. 2022, table A.2):
# ResNet56, ResNet110, WRN-40-2, VGG13, ResNet32x4 and ResNet50.
ANCHORS = ((5.36, 2.0), (6.73, 2.0), (7.24, 6.0), (8.25, 6.0), (8.40, 8.0), (8.53, 8.0))
DETECTION_BETA = 0.25  # the paper's value for Faster R-CNN on COCO, T = 1


def confidence_gap(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the target's logit is above the largest other logit: ``z_t - z_max``.

    Args:
        logits: (B, C) floating point, C >= 2, not divided by a temperature.
        labels: (B,) int64, 0 to C - 1: the target of each row.

    Returns:
        (B,), float32 or wider; negative where the target is not the top class.

    Raises:
        ValueError: a shape or type is wrong, or a label is out of range.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point (B, C) with C >= 2; got {logits.dtype} {tuple(logits.shape)}.")
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(logits)},); got {labels.dtype} {tuple(labels.shape)}.")
    if ((labels < 0) | (labels >= logits.shape[1])).any():
        raise ValueError(f"labels must be from 0 to {logits.shape[1] - 1}.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = labels[:, None]
    others = logits.scatter(1, target, -math.inf).amax(dim=1)
    return logits.gather(1, target).squeeze(1) - others


def suggested_beta(gap: float, anchors: Sequence[tuple[float, float]] = ANCHORS) -> float:
    """The beta of ``dkd_loss`` to start from, for a teacher with this mean ``confidence_gap``.

    Zhao et al. 2022 (section A.3): the more confident the teacher, the larger beta may be, because its non-target
    classes tell more. Too large a beta costs accuracy. The paper gives beta for the gaps of six classifiers (table
    A.2). Between these anchors we interpolate linearly; beyond them we take the nearest one.

    Args:
        gap: mean of ``confidence_gap`` over a training set.
        anchors: (gap, beta) pairs, sorted by gap.

    Returns:
        beta, from the smallest of the anchors to the largest.

    Raises:
        ValueError: ``gap`` is not finite, or the anchors' gaps are not in ascending order.
    """
    if not math.isfinite(gap):
        raise ValueError(f"the mean gap must be a finite number; got {gap}.")
    gaps, betas = ([anchor[side] for anchor in anchors] for side in (0, 1))
    if gaps != sorted(set(gaps)):
        raise ValueError(f"the anchors' gaps must be in ascending order; got {gaps}.")
    if gap <= gaps[0]:
        return betas[0]
    for (low, low_beta), (high, high_beta) in pairwise(anchors):
        if gap <= high:
            return low_beta + (gap - low) / (high - low) * (high_beta - low_beta)
    return betas[-1]


NAME = "gaps"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GUIDANCE = """Guidance (Zhao et al. 2022, A.3): the more confident the teacher, the larger beta. The suggestion lies
between the paper's for six classifiers on CIFAR-100: 2 for gaps of 5.36 and 6.73, 6 for 7.24 and 8.25, 8 for 8.40 and
8.53. Start from it, and also try half and double."""


@dataclass(frozen=True)
class MeasuredGaps:
    """A teacher's ``confidence_gap`` on a data set.

    Attributes:
        teacher: its name.
        data: the samples in words, such as "ground-truth boxes of coco_2017_val".
        samples: the plural word for a sample: "boxes".
        values: (B,) floating point, B >= 1.
        use: the key and temperature that the suggested beta is for.
        advice: text that is added to the guidance.
        beta: the beta to suggest. None takes ``suggested_beta`` of the mean, which is meant for classifiers.
        guidance: what the suggestion is based on.
    """

    teacher: str
    data: str
    samples: str
    values: Tensor
    use: str
    advice: str = ""
    beta: float | None = None
    guidance: str = GUIDANCE

    @property
    def mean(self) -> float:
        """The mean gap."""
        return float(self.values.double().mean())

    @property
    def suggestion(self) -> float:
        """``beta``, or ``suggested_beta`` of the mean."""
        return suggested_beta(self.mean) if self.beta is None else self.beta

    @property
    def quantiles(self) -> dict[float, float]:
        """Quantiles of the gap: share of the samples to value."""
        values = self.values.double()
        shares = torch.tensor(QUANTILES, dtype=torch.float64, device=values.device)
        return dict(zip(QUANTILES, values.quantile(shares).tolist(), strict=True))

    @property
    def wrong(self) -> float:
        """The share of samples whose target is not the top class."""
        return float((self.values < 0).double().mean())


def describe(gaps: MeasuredGaps) -> str:
    """The mean gap, its quantiles, the beta and the guidance."""
    quantiles = ", ".join(f"{share:.0%} {value:.2f}" for share, value in gaps.quantiles.items())
    guidance = f"{gaps.guidance} {gaps.advice}".strip()
    return f"""teacher {gaps.teacher}, {len(gaps.values)} {gaps.data}
mean gap z_t - z_max  {gaps.mean:.2f}   (z_t: the target's logit, z_max: the largest of the others)
quantiles             {quantiles}
not the top class     {gaps.wrong:.1%} of the {gaps.samples}
suggested beta        {_rounded(gaps.suggestion)} {gaps.use}

{guidance}"""


def _rounded(beta: float) -> str:
    return f"{beta:.1f}" if beta >= 1 else f"{beta:.2g}"


def write(gaps: MeasuredGaps, folder: Path) -> list[Path]:
    """Writes gaps.json, gaps.png and gaps.svg into ``folder``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "teacher": gaps.teacher,
        "data": gaps.data,
        "samples": len(gaps.values),
        "mean_gap": gaps.mean,
        "quantiles": gaps.quantiles,
        "not_top_class": gaps.wrong,
        "suggested_beta": gaps.suggestion,
        "gaps": [round(value, 4) for value in gaps.values.tolist()],
    }
    data = folder / f"{NAME}.json"
    write_json(data, content)
    return [data, *save_figure(draw(gaps), folder, NAME)]


def draw(gaps: MeasuredGaps) -> Figure:
    """A histogram of the gaps, with lines at their mean and at 0. Below 0 the target is not the top class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(gaps.values.double().tolist(), bins=40, color="#3b8ea5")
    axes.axvline(gaps.mean, color="#c0392b", linewidth=2, label=f"mean {gaps.mean:.2f}")
    wrong = f"left of 0, {gaps.wrong:.1%}: the target is not the top class"
    axes.axvline(0, color="#444444", linewidth=1.5, linestyle="--", label=wrong)
    figure.suptitle(f"{gaps.teacher}, {gaps.data}", fontsize=10)
    axes.set_title(f"suggested β {_rounded(gaps.suggestion)} {gaps.use}", fontsize=9)
    axes.set(xlabel=r"$z_t - z_{max}$: the target's logit above the largest of the others", ylabel=gaps.samples)
    tidy(axes, grid="y")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
