"""What is checked before a run reads data sets and weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from kd_det.common.errors import SetupError
from kd_det.config import plain_config
from kd_det.config.training_rules import check_proposal_files, check_training
from kd_det.engine.dry_build import dry_build, dry_build_solver
from kd_det.engine.setup import read_setup
from kd_det.modeling import DistillRCNN
from kd_det.teacher.config import teacher_config
from kd_det.teacher.frozen import check_heads, check_image_formats


def read_run(args: argparse.Namespace) -> CfgNode:
    """The configuration of a run that can start, as far as can be told without its data sets and weights.

    Args:
        args: of ``detectron2.engine.default_argument_parser``, and ``dataset``, if there is one, of
            ``kd_det.data.coco_json.add_dataset_option``.

    Raises:
        SetupError: see ``read_setup``, ``check_training_run`` and ``check_evaluation_run``.
    """
    cfg = read_setup(args.config_file, args.opts, getattr(args, "dataset", ()), processes=args.num_gpus)
    if args.eval_only:
        check_evaluation_run(cfg)
    else:
        check_training_run(cfg, args.num_gpus * args.num_machines)
    return cfg


def check_training_run(cfg: CfgNode, processes: int = 1) -> nn.Module:
    """Checks that training can start: its settings, student, teacher, terms, optimiser and OUTPUT_DIR.

    Args:
        cfg: what ``read_setup`` gave.
        processes: how many processes train together.

    Returns:
        the student without weights.

    Raises:
        SetupError: it cannot.
    """
    check_output_dir(cfg)
    _check_distils(cfg)
    check_training(cfg, processes)
    check_proposal_files(cfg, ("TRAIN", "TEST"))
    if cfg.KD.TERMS:
        _check_teacher(cfg)
    student = dry_build(cfg)
    dry_build_solver(cfg, student)
    return student


def check_evaluation_run(cfg: CfgNode) -> None:
    """Checks that the student can be evaluated: its settings and OUTPUT_DIR. The teacher's files need not be there.

    Raises:
        SetupError: it cannot.
    """
    check_output_dir(cfg)
    check_proposal_files(cfg, ("TEST",))
    dry_build(plain_config(cfg))


def check_output_dir(cfg: CfgNode) -> None:
    """Raises ``SetupError`` unless OUTPUT_DIR is a folder that can be written to, or can become one."""
    path = os.path.abspath(cfg.OUTPUT_DIR)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise SetupError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}, but {path!r} is no folder. Give another.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise SetupError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}, but {path!r} cannot be written to. Change its permissions, or give "
            "another folder."
        )


def _check_distils(cfg: CfgNode) -> None:
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    distils = isinstance(architecture, type) and issubclass(architecture, DistillRCNN)
    if cfg.KD.TERMS and not distils:
        raise SetupError(
            f"KD.TERMS is {tuple(cfg.KD.TERMS)}, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} does not "
            "distil: it would train without a teacher. Set it to DistillRCNN, or KD.TERMS to () for the plain student."
        )


def _check_teacher(cfg: CfgNode) -> None:
    teacher_cfg = teacher_config(cfg)
    check_image_formats(cfg, teacher_cfg)
    with _naming(cfg.KD.TEACHER.CONFIG_FILE):
        model = dry_build(teacher_cfg)
    check_heads(model, cfg.KD.TEACHER.CONFIG_FILE)


@contextmanager
def _naming(config_file: str) -> Iterator[None]:
    """Says of an error that it is about the teacher's configuration."""
    try:
        yield
    except SetupError as error:
        raise SetupError(f"KD.TEACHER.CONFIG_FILE {config_file!r}, with KD.TEACHER.OPTS: {error}") from error
