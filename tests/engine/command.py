"""kd-det train in this process: its imports take longer than a short training."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data.datasets import load_coco_json

from kd_det.data.knowledge import sha256_of
from kd_det.engine.run import train
from tests.conftest import kept_loggers
from tests.knowledge import stored_image, write_knowledge
from tests.mini_coco import THINGS, annotation_file
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


def stage_knowledge(stage: Stage, folder: Path, **changed: Any) -> str:
    """Writes stored knowledge of the stage's training set and its teacher: three boxes for each image, random logits.

    Args:
        changed: arguments of ``write_knowledge`` to be different.
    """
    images = stage.folder / "data" / "coco" / "train2017"
    records = load_coco_json(str(annotation_file(stage.folder / "data", "train2017")), str(images))
    made_of = {"teachers": [{"weights": stage.teacher[1], "sha256": sha256_of(stage.teacher[1])}]}
    boxes = torch.tensor([[5.0, 5, 60, 50], [30, 20, 120, 90], [0, 0, 20, 20]])
    given = {"classes": [thing["name"] for thing in THINGS], "made_of": made_of, **changed}
    return write_knowledge(folder, {"stage_train": records}, lambda _: stored_image(boxes, 81), **given)


def _log(output: Path) -> str:
    log = output / "log.txt"
    return re.sub(r"\x1b\[\d+m", "", log.read_text()) if log.exists() else ""
