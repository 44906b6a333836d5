"""Markdown tables, and the results files that the model zoo's tables are made of."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_det.common.errors import SetupError


def summary(values: Sequence[float], decimals: int = 1) -> str:
    """The mean, and ± the sample standard deviation if there are several values."""
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def gain(values: Sequence[float], baseline: Sequence[float], decimals: int = 1) -> str:
    """The difference of the means, with its sign."""
    return f"{statistics.fmean(values) - statistics.fmean(baseline):+.{decimals}f}"


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % confidence interval.

    Attributes:
        mean: of the paired differences.
        half_width: half the interval's length; None: one pair has no interval.
    """

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} [{self.mean - self.half_width:+.1f}, {self.mean + self.half_width:+.1f}]"

    @property
    def is_above(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.half_width is not None and self.mean > self.half_width

    @property
    def is_below(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.half_width is not None and -self.mean > self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.is_above or self.is_below


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The mean of ``values - baseline``, with a 95 % interval of Student's t distribution.

    Args:
        values: one for each seed.
        baseline: of the same seeds, in the same order.

    Raises:
        ValueError: the lengths differ.
    """
    from scipy.stats import t

    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Difference(mean, None)
    quantile = float(t.ppf(0.975, count - 1))
    return Difference(mean, quantile * statistics.stdev(differences) / math.sqrt(count))


def markdown(rows: Sequence[Sequence[object]], headers: Sequence[str], *, text_columns: int | None = None) -> str:
    """A table in GitHub's Markdown. Cells are written unchanged.

    Args:
        rows: one cell for each header.
        headers: the titles of the columns.
        text_columns: how many of the first columns are aligned left; the others are aligned right. None: all left.
    """
    from tabulate import tabulate

    alignment = None
    if text_columns is not None and rows:
        alignment = ["left"] * text_columns + ["right"] * (len(headers) - text_columns)
    return str(tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=alignment))


def read_results(
    folder: Path,
    is_wanted: Callable[[dict[str, Any]], bool],
    required: Callable[[dict[str, Any]], Mapping[str, Sequence[str]]],
    format: str,
) -> list[dict[str, Any]]:
    """The contents of a folder's results files (``*.json``), sorted by file name.

    Args:
        folder: such as ``results``.
        is_wanted: says whether a file's content belongs to the caller's tables.
        required: the required fields: those of the file itself under "", those of every item of a list under the list's
            name.
        format: the module whose docstring describes the files, for the error.

    Raises:
        SetupError: the folder has no ``*.json``, a file is not a JSON object, or a field is missing.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise SetupError(f"there are no results in {str(folder)!r}; give the folder with the *.json files")
    found = []
    for path in paths:
        content = _read_object(path)
        if not is_wanted(content):
            continue
        missing = {
            f"{part} {name}".strip()
            for part, names in required(content).items()
            for item in (content.get(part, []) if part else [content])
            for name in names
            if name not in item
        }
        if missing:
            raise SetupError(f"{path} lacks {', '.join(sorted(missing))}; {format} describes the file")
        found.append(content)
    return found


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SetupError(f"{path} is not a JSON object; remove it, or move it out of the folder with the results")
    return content
