"""Every ``KD.*`` key, and how a configuration is read.

``add_kd_config`` adds the keys to a Detectron2 configuration, as the projects that ship with Detectron2 do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import yaml
from detectron2.config import CfgNode, get_cfg

from kd_det.errors import SetupError, did_you_mean

# The distilling ROI heads, and the Detectron2 heads that each one is when nothing is distilled.
PLAIN_ROI_HEADS = {
    "DistillROIHeads": "StandardROIHeads",
    "DistillCascadeROIHeads": "CascadeROIHeads",
    "DistillRes5ROIHeads": "Res5ROIHeads",
}


def add_kd_config(cfg: CfgNode) -> None:
    """Adds every ``KD.*`` key with its default to ``cfg``, in place. Greek letters are the papers' symbols."""
    # Data sets of your own, each [name, COCO instances JSON, image folder]; paths from the working directory. A set is
    # used once DATASETS.TRAIN or DATASETS.TEST names it.
    cfg.DATASETS.COCO_JSON = []

    cfg.KD = CfgNode()

    # The distillation terms, each adding its own loss to the detector's: "kd", "dkd". Empty trains the plain student.
    cfg.KD.TERMS = ()

    cfg.KD.TEACHER = CfgNode()
    # The teacher's configuration: a model-zoo name ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml") or a path.
    cfg.KD.TEACHER.CONFIG_FILE = ""
    # The teacher's checkpoint: a path or URL. Empty takes the zoo's own checkpoint for that zoo configuration.
    cfg.KD.TEACHER.WEIGHTS = ""
    # Overrides of the teacher's configuration: ["MODEL.ROI_HEADS.NUM_CLASSES", 20, ...].
    cfg.KD.TEACHER.OPTS = []
    # Which classes to compare, where the teacher has others than the student or has them in another order: "name" for
    # a class that both call so, "student's name=teacher's name", "*" for all names that both have. The classes left
    # out are in neither softmax. Empty: both have the same classes in the same order.
    cfg.KD.TEACHER.CLASS_MAP = []
    # Precision of the teacher's frozen forward: "float32", "bfloat16" or "float16".
    cfg.KD.TEACHER.DTYPE = "float32"

    # Hinton et al. 2015: WEIGHT * T^2 * KL(teacher || student) over the K+1 classes of every sampled proposal.
    cfg.KD.KD = CfgNode()
    cfg.KD.KD.WEIGHT = 1.0
    cfg.KD.KD.TEMPERATURE = 1.0  # T

    # Zhao et al. 2022, eq. 7: WEIGHT * T^2 * (alpha * TCKD + beta * NCKD); defaults are the paper's for detection.
    cfg.KD.DKD = CfgNode()
    cfg.KD.DKD.WEIGHT = 1.0
    cfg.KD.DKD.ALPHA = 1.0  # alpha, weight of the target-class part
    cfg.KD.DKD.BETA = 0.25  # beta, weight of the non-target part
    cfg.KD.DKD.TEMPERATURE = 1.0  # T


def load_config(config_file: str, overrides: Sequence[object] = ()) -> CfgNode:
    """Detectron2's defaults and the ``KD.*`` keys, then ``config_file``, then ``overrides`` (KEY VALUE ...).

    Raises:
        SetupError: the file does not exist or is not YAML, a key does not exist (the nearest is suggested), or a value
            is of the wrong type.
    """
    cfg = get_cfg()
    add_kd_config(cfg)
    merge_config(cfg, config_file, overrides, source="--config-file")
    return cfg


def merge_config(cfg: CfgNode, config_file: str, overrides: Sequence[object], source: str) -> None:
    """Merges a file and overrides into ``cfg``; ``source`` is the option or key that named the file, for errors."""
    if config_file and not os.path.isfile(config_file):
        raise SetupError(f"{source}: no file {config_file!r}. Give the path of a YAML configuration.")
    if len(overrides) % 2:
        raise SetupError(f"overrides come as KEY VALUE pairs, got {list(overrides)}: one has no partner.")
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise SetupError(_explain(error, cfg, config_file)) from error


def plain_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` that plain Detectron2 understands: none of our keys, Detectron2's own model and heads."""
    plain = cfg.clone()
    plain.defrost()
    plain.pop("KD", None)
    plain.DATASETS.pop("COCO_JSON", None)
    if plain.MODEL.META_ARCHITECTURE == "DistillRCNN":
        plain.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    heads = plain.MODEL.ROI_HEADS.NAME
    plain.MODEL.ROI_HEADS.NAME = PLAIN_ROI_HEADS.get(heads, heads)
    return plain


def _explain(error: Exception, cfg: CfgNode, config_file: str) -> str:
    text = str(error.args[0]) if error.args else str(error)
    prefix = f"configuration {config_file or '(overrides)'}: "
    if "Non-existent" in text:
        key = text.rsplit(":", 1)[-1].strip()
        return f"{prefix}there is no key {key!r}.{did_you_mean(key, _keys(cfg))}"
    if "Type mismatch" in text:
        return f"{prefix}{text}. Write the value in the key's own type (a float as 8.0, a list as ['a'])."
    return prefix + text


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
