"""Tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from kd_det.common.files import write_atomically


def write_table(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> Path:
    """Writes a header and rows, whole or not at all; returns ``path``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
    return path
