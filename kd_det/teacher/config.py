"""Finds the teacher's configuration and weights in the model zoo or on disk."""

from __future__ import annotations

import os

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg

from kd_det.common.config_files import CONFIGS
from kd_det.common.config_merge import merge_config
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.yaml_files import refuse_python
from kd_det.config import TERMS, add_kd_config, plain_config
from kd_det.config.check import check_model_settings
from kd_det.config.model_rules import check_model
from kd_det.data.coco_json import use_datasets


def live_terms(cfg: CfgNode) -> list[str]:
    """The names in ``KD.TERMS`` that need the live teacher: all, or with ``KD.TEACHER.STORED`` those for which stored
    logits are not enough.
    """
    stored = {name for name in TERMS if cfg.KD.TEACHER.STORED and not TERMS[name].needs_teacher}
    return [name for name in cfg.KD.TERMS if name not in stored]


def rpn_user(cfg: CfgNode) -> str:
    """The setting that makes the live teacher's RPN run, for messages; "" if none does."""
    if cfg.KD.TEACHER.PROPOSALS:
        return "KD.TEACHER.PROPOSALS is True"
    if cfg.DATASETS.UNLABELED and not cfg.KD.TEACHER.STORED:
        return f"DATASETS.UNLABELED is {tuple(cfg.DATASETS.UNLABELED)}, to be labelled by the teacher"
    return ""


def teacher_config(cfg: CfgNode) -> CfgNode:
    """The teacher's plain configuration, with ``MODEL.WEIGHTS`` and ``MODEL.DEVICE`` from ``cfg``.

    The data sets in its ``DATASETS.COCO_JSON`` are registered, so that its class names are known.

    Raises:
        SetupError: see ``load_teacher``.
    """
    node = cfg.KD.TEACHER
    path, weights = _locate(node.CONFIG_FILE, node.WEIGHTS)
    teacher_cfg = get_cfg()
    add_kd_config(teacher_cfg)  # a distilled student can be a teacher
    merge_config(teacher_cfg, path, node.OPTS, source="KD.TEACHER.CONFIG_FILE")
    _check_settings(teacher_cfg, node.CONFIG_FILE)
    _use_datasets(teacher_cfg, node.CONFIG_FILE)
    teacher_cfg = plain_config(teacher_cfg)
    teacher_cfg.MODEL.WEIGHTS = weights
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    return teacher_cfg


def _check_settings(teacher_cfg: CfgNode, config_file: str) -> None:
    try:
        check_model_settings(teacher_cfg)
        check_model(teacher_cfg)
    except SetupError as error:
        raise SetupError(f"KD.TEACHER.CONFIG_FILE {config_file!r}, with KD.TEACHER.OPTS: {error}") from error


def _use_datasets(teacher_cfg: CfgNode, config_file: str) -> None:
    try:
        use_datasets(teacher_cfg)
    except SetupError as error:
        raise SetupError(
            f"KD.TEACHER.CONFIG_FILE {config_file!r}: {error} Only the class names are read from it; remove it with "
            "KD.TEACHER.OPTS ['DATASETS.COCO_JSON', []]."
        ) from error


def _locate(config_file: str, weights: str) -> tuple[str, str]:
    if not config_file:
        raise SetupError(
            "KD.TEACHER.CONFIG_FILE is empty but KD.TERMS or KD.TEACHER.PROPOSALS needs a teacher. Give a model-zoo "
            "name such as 'COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml', or the path of the teacher's configuration."
        )
    refuse_python(config_file, "KD.TEACHER.CONFIG_FILE")
    for path in (config_file, str(CONFIGS / config_file)):
        if os.path.isfile(path):
            if not weights:
                raise SetupError(
                    f"KD.TEACHER.WEIGHTS is empty, and {config_file!r} is a file, not a model-zoo name with a "
                    "checkpoint to download. Give the teacher's checkpoint."
                )
            return path, weights
    try:
        path = model_zoo.get_config_file(config_file)
        return path, weights or model_zoo.get_checkpoint_url(config_file)
    except RuntimeError as error:
        raise SetupError(
            f"KD.TEACHER.CONFIG_FILE {config_file!r}: {error} It is not a file either."
            f"{did_you_mean(config_file, zoo_names())} Give a model-zoo name, or the path of a YAML configuration."
        ) from error


def zoo_names() -> list[str]:
    """The names of the model zoo's YAML configurations, with weights or without."""
    root = os.path.join(os.path.dirname(model_zoo.__file__), "configs")
    return [
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.endswith(".yaml")
    ]
