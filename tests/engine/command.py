"""kd-det train in this process: its imports take longer than a short training."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from kd_det.engine.run import train
from tests.conftest import kept_loggers
from tests.stress.signals_detection import Stage

QUICK = ["DATALOADER.NUM_WORKERS", 0, "SOLVER.CHECKPOINT_PERIOD", 100, "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", "()"]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, its last line on stderr, and what it has logged."""

    code: int
    error: str
    log: str


def run_here(stage: Stage, output: Path, *options: object) -> Ended:
    """Runs the command with the stage's settings, without evaluation; ``options`` are flags and overrides."""
    flags = [option for option in options if str(option).startswith("--")]
    overrides = [option for option in options if option not in flags]
    code, start, stderr = 0, len(_log(output)), io.StringIO()
    try:
        with kept_loggers(), redirect_stderr(stderr):
            train([*map(str, [*flags, *stage.settings, *QUICK, "OUTPUT_DIR", output, *overrides])])
    except SystemExit as end:
        code = end.code
    lines = stderr.getvalue().splitlines() or [""]
    return Ended(code, lines[-1], _log(output)[start:])


def _log(output: Path) -> str:
    log = output / "log.txt"
    return re.sub(r"\x1b\[\d+m", "", log.read_text()) if log.exists() else ""
