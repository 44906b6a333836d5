"""Pictures of the analyses: the same figure as PNG and as SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

DPI = 150  # of the PNG


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes ``folder/name.png`` and ``folder/name.svg``; the same figure gives the same bytes.

    Args:
        folder: created where it is not there.

    Returns:
        The two paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(paths[0], dpi=DPI)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
