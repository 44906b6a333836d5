"""A classifier teacher's confidence on its training data, for ``tools/suggest_beta.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode

from classification.auto_train import train_teacher
from classification.config import check_config
from classification.data import build_data
from classification.networks import build_teacher
from classification.trainer import build_accelerator
from kd_det.common.beta import MeasuredGaps, confidence_gap
from kd_det.common.config_files import find_configs
from kd_det.common.errors import SetupError
from kd_det.common.yaml_files import read_config_file

# Sections and keys of classification's configurations that Detectron2's do not have.
OWN_KEYS = ("DATA", "STUDENT", "TEACHER", "DISTILLER")
USE = "for DKD.BETA (T = 4)"
ADVICE = """On ImageNet (T = 1) the paper used 0.5 for
ResNet-34 to ResNet-18 and 2 for ResNet-50 to MobileNet."""


def is_classification(config_files: str | Sequence[str]) -> bool:
    """Whether configuration files are for ``classification``, judged by their keys, ``_BASE_`` files included.

    Raises:
        SetupError: a file does not exist, or is not YAML.
    """
    keys: set[str] = set()
    for path in find_configs(config_files).values():
        keys |= set(read_config_file(path, "--config-file"))
    return not keys.isdisjoint(OWN_KEYS)


def classifier_gaps(cfg: CfgNode, images: int | None = None) -> MeasuredGaps:
    """Measures the teacher of ``cfg`` on the training data without augmentation, as Zhao et al. 2022, A.3.

    If TEACHER.AUTO_TRAIN is on, a missing teacher is trained first.

    Args:
        cfg: with ``TEACHER``.
        images: how many images to use, evenly spread over the data set; None: all.

    Raises:
        SetupError: the teacher or the data cannot be loaded, or ``images`` is below 1.
    """
    if images is not None and images < 1:
        raise SetupError(f"--images is {images}; it must be 1 or more.")
    if not cfg.TEACHER.NAME:
        raise SetupError("TEACHER.NAME is empty. Name the teacher to measure, and give its TEACHER.WEIGHTS.")
    check_config(cfg)
    if cfg.TEACHER.AUTO_TRAIN:
        train_teacher(cfg)
    accelerator = build_accelerator(cfg)
    data = build_data(cfg, accelerator.device)
    teacher = build_teacher(cfg, data, uses_logits=True).to(accelerator.device)
    used = _spread(data.train.samples, images).to(accelerator.device)
    gaps = []
    for batch in data.train.plain():
        rows = used[batch.indices]
        if rows.any():
            with accelerator.autocast():
                logits = teacher(batch.images[rows]).logits
            gaps.append(confidence_gap(logits, batch.labels[rows]).cpu())
    name = f"training images of {cfg.DATA.NAME}"
    return MeasuredGaps(cfg.TEACHER.NAME, name, "images", torch.cat(gaps), USE, ADVICE)


def _spread(samples: int, images: int | None) -> torch.Tensor:
    """Which samples are used, bool (samples,)."""
    chosen = torch.zeros(samples, dtype=torch.bool)
    count = min(images or samples, samples)
    chosen[torch.arange(count) * samples // count] = True
    return chosen
