"""Trains or evaluates as a command line says: reads and checks the configuration, starts processes, and runs."""

from __future__ import annotations

import argparse
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from kd_det.checkpoint import load_strictly, local_path
from kd_det.common.command_line import add_import, parse_arguments
from kd_det.common.config_files import find_configs
from kd_det.common.errors import SetupError
from kd_det.common.files import remove_temporary_files, run_lock
from kd_det.common.signals import end_at_once, noting_signals
from kd_det.config import plain_config
from kd_det.data.checks import check_datasets, check_unlabeled
from kd_det.data.coco_json import add_dataset_option
from kd_det.data.proposals import check_proposals
from kd_det.engine.launch import launch
from kd_det.engine.resuming import last_checkpoint, new_run
from kd_det.engine.setup import one_line_errors, read_run
from kd_det.engine.trainer import DistillTrainer

logger = logging.getLogger(__name__)

TRAIN_EXAMPLES = r"""examples:
  kd-det train --config-file coco/dkd_r101_r18.yaml --num-gpus 8
  kd-det train --config-file coco/dkd_r101_r18.yaml my_schedule.yaml SOLVER.BASE_LR 0.005
  kd-det train --config-file my_student.yaml --import my_terms.py KD.TERMS "('mine',)" \
      --dataset mine_train=train.json,images --dataset mine_val=val.json,images \
      DATASETS.TRAIN "('mine_train',)" DATASETS.TEST "('mine_val',)"
  kd-det train --config-file digits_det/student.yaml OUTPUT_DIR output/digits_student
"""
EVALUATE_EXAMPLES = """examples:
  kd-det eval --config-file coco/dkd_r101_r18.yaml MODEL.WEIGHTS output/coco/dkd_r101_r18/model_final.pth
after kd-det demo:
  kd-det eval --config-file digits_det/dkd.yaml MODEL.WEIGHTS output/demo/dkd/seed1/model_final.pth
"""


def train(arguments: Sequence[str] | None = None) -> None:
    """Trains a detector, with Detectron2's own options. Arguments: see ``kd-det train --help``; None: the process's."""
    _train_or_evaluate("kd-det train", TRAIN_EXAMPLES, arguments)


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """Evaluates a detector: ``train`` with ``--eval-only``."""
    _train_or_evaluate("kd-det eval", EVALUATE_EXAMPLES, arguments, eval_only=True)


def _train_or_evaluate(
    name: str, examples: str, arguments: Sequence[str] | None, *, eval_only: bool = False
) -> None:
    with one_line_errors(), noting_signals(end_at_once):
        parser = default_argument_parser(epilog=examples)
        parser.prog = name
        parser.set_defaults(eval_only=eval_only)
        add_import(parser)
        add_dataset_option(parser)
        run(parse_arguments(parser, arguments))


def run(args: argparse.Namespace) -> OrderedDict[str, Any] | None:
    """Trains or evaluates as Detectron2's options say; user errors end the process with one line and exit code 2.

    Args:
        args: of ``detectron2.engine.default_argument_parser``: ``config_file`` (a string or a list), ``eval_only``,
            ``resume``, ``opts``, ``num_gpus`` and the other process options; and optionally ``dataset``, of
            ``kd_det.data.coco_json.add_dataset_option``.

    Returns:
        the evaluation's results; None with several processes.
    """
    with one_line_errors():
        return launch(train_or_evaluate, args)


def train_or_evaluate(args: argparse.Namespace) -> OrderedDict[str, Any] | None:
    """The work of each process; takes the arguments of ``run``.

    Returns:
        the evaluation's results in the main process, None in others.
    """
    cfg = read_run(args)
    cfg.freeze()
    if args.eval_only:
        _set_up(cfg, args)
        return _evaluate(cfg, args.resume)
    with run_lock(cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext():
        if comm.is_main_process():
            remove_temporary_files(cfg.OUTPUT_DIR)
        _set_up(cfg, args)
        return _train(cfg, args.resume)


def _set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    default_setup(cfg, _for_detectron2(args))
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="kd_det")  # default_setup's is Detectron2's
    logging.getLogger("kd_det").propagate = True
    if comm.is_main_process():
        check_datasets(cfg)
        if not args.eval_only:
            check_unlabeled(cfg)
        check_proposals(cfg, ("TEST",) if args.eval_only else ("TRAIN", "TEST"))
    comm.synchronize()


def _for_detectron2(args: argparse.Namespace) -> argparse.Namespace:
    """``args`` with at most one configuration file, because ``default_setup`` logs its content and knows only one.

    The merged configuration is logged in any case, and written to OUTPUT_DIR/config.yaml.
    """
    files = list(find_configs(args.config_file).values())
    return argparse.Namespace(**{**vars(args), "config_file": files[0] if len(files) == 1 else ""})


def _train(cfg: CfgNode, resume: bool) -> OrderedDict[str, Any] | None:
    resuming = resume and last_checkpoint(cfg.OUTPUT_DIR) is not None
    if resuming:
        _seed_anew(cfg)
    elif resume:
        logger.warning("--resume: no checkpoint in OUTPUT_DIR %r; starting from MODEL.WEIGHTS", cfg.OUTPUT_DIR)
    with new_run(cfg.OUTPUT_DIR) if comm.is_main_process() and not resuming else nullcontext():
        trainer = DistillTrainer(cfg)
        if cfg.MODEL.WEIGHTS and not resuming:
            local_path(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
        trainer.resume_or_load(resume=resuming)
    return trainer.train()


def _seed_anew(cfg: CfgNode) -> None:
    """Seeds from ``SEED`` and the checkpoint: otherwise a resumed run would draw its first images again.

    ``RandomSubsetTrainingSampler`` draws its subset from the same seed, and must draw the same one again.
    """
    checkpoint = last_checkpoint(cfg.OUTPUT_DIR)
    if cfg.SEED < 0 or checkpoint is None or cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        return
    seed_all_rng(zlib.crc32(f"{cfg.SEED} {os.path.basename(checkpoint)} {comm.get_rank()}".encode()))


def _evaluate(cfg: CfgNode, resume: bool) -> OrderedDict[str, Any] | None:
    model = build_model(plain_config(cfg))  # the teacher's files may be missing
    weights = last_checkpoint(cfg.OUTPUT_DIR) if resume else cfg.MODEL.WEIGHTS
    if not weights:
        raise SetupError(
            f"--eval-only: there are no weights to evaluate ({'OUTPUT_DIR' if resume else 'MODEL.WEIGHTS'} is empty). "
            f"Add MODEL.WEIGHTS {cfg.OUTPUT_DIR}/model_final.pth."
        )
    load_strictly(model, weights, "MODEL.WEIGHTS")
    return DistillTrainer.test(cfg, model)
