"""What ``tools/suggest_beta.py`` says of a teacher's confidence, a classifier's or a detector's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from kd_det.analysis import suggested_beta
from kd_det.common.files import write_atomically
from kd_det.figures import save_figure

NAME = "gaps"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GUIDANCE = """The guidance (Zhao et al. 2022): the surer the teacher, the larger beta. It is from classifiers on
CIFAR-100, which took beta from 2 to 8; the gaps at which we place these are ours, so take the number as a place to
start, and try half and double."""


@dataclass(frozen=True)
class MeasuredGaps:
    """A teacher's ``confidence_gap`` on a data set.

    Attributes:
        teacher: what it is called.
        data: what it answered to: "ground-truth boxes of coco_2017_val".
        samples: these in one word, in the plural: "boxes".
        values: (B,) floating point, B >= 1.
        use: what the suggested beta is for.
        advice: what to add to the guidance.
        beta: the beta to suggest; None: the ``suggested_beta`` of the mean, which is for classifiers.
        guidance: what the suggestion rests on.
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
        return self.values.double().mean().item()

    @property
    def suggestion(self) -> float:
        """``beta``, or what follows from the mean."""
        return suggested_beta(self.mean) if self.beta is None else self.beta

    @property
    def quantiles(self) -> dict[float, float]:
        """By share: the gap below which that share of the samples is."""
        values = self.values.double()
        shares = torch.tensor(QUANTILES, dtype=torch.float64, device=values.device)
        return dict(zip(QUANTILES, values.quantile(shares).tolist(), strict=True))

    @property
    def wrong(self) -> float:
        """The share of samples whose target is not the top class."""
        return (self.values < 0).double().mean().item()


def describe(gaps: MeasuredGaps) -> str:
    """The mean gap, its quantiles, the beta and the guidance."""
    quantiles = ", ".join(f"{share:.0%} {value:.2f}" for share, value in gaps.quantiles.items())
    guidance = f"{gaps.guidance} {gaps.advice}".strip()
    return f"""teacher {gaps.teacher}, {len(gaps.values)} {gaps.data}
mean gap z_t - z_max  {gaps.mean:.2f}   (z_t: the logit of the sample's own class, z_max: the largest of the others)
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
    write_atomically(data, (json.dumps(content, indent=1) + "\n").encode())
    return [data, *save_figure(draw(gaps), folder, NAME)]


def draw(gaps: MeasuredGaps) -> Figure:
    """A histogram of the gaps, with their mean, and 0, below which the target is not the top class."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(gaps.values.double().tolist(), bins=40, color="#3b8ea5")
    axes.axvline(gaps.mean, color="#c0392b", linewidth=2, label=f"mean {gaps.mean:.2f}")
    wrong = f"left of 0, {gaps.wrong:.1%}: the own class is not the top one"
    axes.axvline(0, color="#444444", linewidth=1.5, linestyle="--", label=wrong)
    figure.suptitle(f"{gaps.teacher}, {gaps.data}", fontsize=10)
    axes.set_title(f"suggested β {_rounded(gaps.suggestion)} {gaps.use}", fontsize=9)
    axes.set(xlabel=r"$z_t - z_{max}$: the own class's logit above the largest of the others", ylabel=gaps.samples)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
