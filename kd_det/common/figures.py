"""Saving and common style of the studies' figures. matplotlib is imported on first use."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kd_det.common.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150  # of the PNG
FORMATS = ("png", "svg")
PALETTE = (
    *("#2a9d4e", "#3b8ea5", "#8e5ea2", "#c0392b", "#b8860b", "#5d6d7e", "#d16ba5", "#1f4e9c", "#6b8e23"),
    *("#00b3b3", "#7f5539", "#ff9896", "#4b0082", "#c5b000"),
)


def save_figure(figure: Figure, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes ``folder/name.png`` and ``folder/name.svg`` atomically. The same figure gives the same bytes.

    Args:
        figure: what to save.
        folder: created if it does not exist.
        name: the files' name, without suffix.
        formats: "png" and "svg", or one of the two.

    Returns:
        The paths, in the order of ``formats``.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in formats]
    with matplotlib.rc_context({"svg.hashsalt": name}):
        for path, suffix in zip(paths, formats, strict=True):
            content = io.BytesIO()
            # No date: it would differ from call to call.
            figure.savefig(content, format=suffix, dpi=DPI, metadata={"Date": None} if suffix == "svg" else None)
            write_atomically(path, content.getbuffer())
    return paths


def colours(names: Iterable[str], fixed: Mapping[str, str] | None = None) -> dict[str, str]:
    """A colour for each name, as ``#rrggbb``.

    Args:
        names: what is drawn, in order.
        fixed: the colours of some names. The others cycle through ``PALETTE``, so any number of names can be drawn.
    """
    fixed = fixed or {}
    palette = cycle(PALETTE)
    return {name: fixed[name] if name in fixed else next(palette) for name in dict.fromkeys(names)}


def tidy(axes: Axes, *, grid: Literal["x", "y", "both"] | None = None) -> None:
    """Removes the frame's upper and right side; draws a pale grid behind the data.

    Args:
        axes: what to change.
        grid: the axis whose ticks get grid lines; None: no grid.
    """
    if grid is not None:
        axes.grid(axis=grid, alpha=0.3)
        axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
