#!/usr/bin/env python
"""Random settings of a training run, of the student's and the teacher's configuration, right and wrong.

What the start-up check lets pass must also build: the model, its optimiser and the reader of its images.
"""

from __future__ import annotations

import functools
import logging
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetMapper
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model

from kd_det.config import load_config
from kd_det.config.check import leaves
from kd_det.engine.setup import check_training_run, read_setup
from tests.fuzz.harness import Target
from tests.tiny import TINY, teacher_files

# Of weights that are built for real: thousands of odd sizes must fit into the memory of a test.
MOST_WEIGHTS = 5_000_000
TERMS = ("kd", "dkd", "nkd", "sdd", "reviewkd", "fitnet", "fgfi", "pkd")
HEADS = ("DistillROIHeads", "DistillCascadeROIHeads")

ODD_NUMBERS = (
    0, 1, -1, 2, 3, 7, 16, 100, 10**6, -(10**6), 2**31, 2**63, 10**400, 0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 1e-30, -1e-30,
    1e30, 1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "x", "None", "RPN", "GN", "BN", "p9", "p3=", "=p3", "p2=p3", "res5", "../..", "\0", "a\nb", "ü", "(1,",
    "[]", "{}", "{1: 2}", "1e9", "RetinaNet", "PanopticFPN", "ProposalNetwork", "SemanticSegmentor",
    "PrecomputedProposals",
    "build_resnet_backbone", "build_retinanet_resnet_fpn_backbone", "build_timm_fpn_backbone", "Res5ROIHeads", "cuda:7",
    "RROIHeads", "RRPN", "absolute", "vertical", "giou", "WarmupCosineLR", "__import__('os')", "x" * 10000,
)  # fmt: skip


@functools.cache
def base() -> list[Any]:
    """The overrides of a run that works."""
    teacher = teacher_files(Path(tempfile.mkdtemp(prefix="fuzz_settings_")))
    return [
        *TINY, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
        "KD.TEACHER.CONFIG_FILE", teacher[0], "KD.TEACHER.WEIGHTS", teacher[1],
        "KD.TEACHER.DTYPE", "float32",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "INPUT.CROP.ENABLED", True,
    ]  # fmt: skip


@functools.cache
def known() -> list[tuple[str, Any]]:
    """Every key with its value in the run that works."""
    return list(leaves(load_config("", base())))


def make(rng: random.Random, folder: Path) -> list[Any]:
    """The overrides of a run with one to three random settings."""
    overrides = [
        *base(), "KD.TERMS", tuple(rng.sample(TERMS, rng.randint(0, 2))), "MODEL.ROI_HEADS.NAME", rng.choice(HEADS),
        "OUTPUT_DIR", str(folder / "output"),
    ]  # fmt: skip
    drawn = [part for _ in range(rng.randint(1, 3)) for part in _setting(rng)]
    if rng.random() < 0.2:
        return [*overrides, "KD.TERMS", ("dkd",), "KD.TEACHER.OPTS", drawn]
    return [*overrides, *drawn]


def _setting(rng: random.Random) -> tuple[str, Any]:
    key, value = rng.choice(known())
    drawn = rng.choice(KINDS)(rng, value)
    return key, str(drawn) if rng.random() < 0.3 else drawn


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, value * 2, value // 2, 0, 1, 3, 10**6))
    if isinstance(value, float):
        return rng.choice((value / 2, value * 3, -value, 0.0, 1.0, 1e-12, 1e12))
    if isinstance(value, str):
        return rng.choice((value[:-1], value + "x", value.lower(), *ODD_TEXTS))
    if isinstance(value, (list, tuple)):
        return _near_list(rng, value)
    return _odd(rng, value)


def _near_list(rng: random.Random, value: Any) -> Any:
    entries = list(value)
    change = rng.randrange(6)
    if change == 0 or not entries:
        entries.append(rng.choice((*ODD_NUMBERS, *ODD_TEXTS)))
    elif change == 1:
        entries.pop()
    elif change == 2:
        entries.reverse()
    elif change == 3:
        entries.append(entries[0])
    else:
        at = rng.randrange(len(entries))
        entries[at] = rng.choice((_near, _odd))(rng, entries[at])
    return type(value)(entries)


def _odd(rng: random.Random, value: Any) -> Any:
    """A value of any type."""
    del value
    scalars = (*ODD_NUMBERS, *ODD_TEXTS, None, True, False)
    drawn = rng.choice(scalars)
    return rng.choice((drawn, [drawn], (drawn, rng.choice(scalars)), [[drawn]], {"a": drawn}, [], ()))


KINDS: tuple[Callable[[random.Random, Any], Any], ...] = (_near, _near, _near, _odd)


def read(overrides: list[Any]) -> None:
    """Checks the run as its start does, and builds it where it is small."""
    logging.disable(logging.CRITICAL)
    cfg = read_setup("", overrides)
    student = check_training_run(cfg)
    if sum(value.numel() for value in student.parameters()) < MOST_WEIGHTS:
        model = build_model(cfg)
        DefaultTrainer.build_lr_scheduler(cfg, DefaultTrainer.build_optimizer(cfg, model))
    if not cfg.MODEL.KEYPOINT_ON:  # that needs the keypoints of a data set
        DatasetMapper(cfg, True)
        DatasetMapper(cfg, False)


TARGET = Target("settings", make, read)

if __name__ == "__main__":
    from tests.fuzz.harness import main

    main(TARGET)
