"""The command line's work: read the configuration, check what it names, then train or evaluate."""

from __future__ import annotations

import argparse
import logging
import os
import zlib
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from kd_det.checkpoint import KDCheckpointer, load_strictly, local_path
from kd_det.common.config_files import find_configs
from kd_det.common.errors import SetupError
from kd_det.config import plain_config
from kd_det.data.checks import check_datasets
from kd_det.engine.setup import one_line_errors, read_setup
from kd_det.engine.trainer import DistillTrainer

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> OrderedDict[str, Any] | None:
    """Trains or evaluates as Detectron2's options say; errors of the user's end the process with one line, code 2.

    Args:
        args: of ``detectron2.engine.default_argument_parser``: ``config_file`` (a string or a list), ``eval_only``,
            ``resume``, ``opts``; and ``dataset``, if there is one, of ``kd_det.data.coco_json.add_dataset_option``.

    Returns:
        the evaluation's results in the main process, None in others.
    """
    with one_line_errors():
        cfg = _setup(args)
        return _evaluate(cfg, args.resume) if args.eval_only else _train(cfg, args.resume)


def _setup(args: argparse.Namespace) -> CfgNode:
    cfg = read_setup(args.config_file, args.opts, getattr(args, "dataset", ()))
    wanted, there = args.num_gpus, torch.cuda.device_count()
    if wanted > max(1, there) and cfg.MODEL.DEVICE.startswith("cuda"):
        raise SetupError(f"--num-gpus is {wanted} but there are {there} GPUs.")
    cfg.freeze()
    default_setup(cfg, _for_detectron2(args))
    if comm.is_main_process():
        check_datasets(cfg)
    comm.synchronize()
    return cfg


def _for_detectron2(args: argparse.Namespace) -> argparse.Namespace:
    """``args`` with one file at the most: ``default_setup`` shows its content, and does not know several.

    What several make together is shown by ``default_setup`` in any case, and written to OUTPUT_DIR/config.yaml.
    """
    files = list(find_configs(args.config_file).values())
    return argparse.Namespace(**{**vars(args), "config_file": files[0] if len(files) == 1 else ""})


def _train(cfg: CfgNode, resume: bool) -> OrderedDict[str, Any] | None:
    if resume:
        _seed_anew(cfg)
    trainer = DistillTrainer(cfg)
    resuming = resume and trainer.checkpointer.has_checkpoint()
    if resume and not resuming:
        logger.warning("--resume: no checkpoint in OUTPUT_DIR %r; starting from MODEL.WEIGHTS", cfg.OUTPUT_DIR)
    if cfg.MODEL.WEIGHTS and not resuming:
        local_path(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def _seed_anew(cfg: CfgNode) -> None:
    """Seeds by ``SEED`` and the checkpoint: a resumed run would else draw the images of its first iterations again.

    ``RandomSubsetTrainingSampler`` draws its subset from the same seed, and must find the same one.
    """
    tag = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if cfg.SEED < 0 or not os.path.isfile(tag) or cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        return
    with open(tag) as file:
        seed_all_rng(zlib.crc32(f"{cfg.SEED} {file.read().strip()} {comm.get_rank()}".encode()))


def _evaluate(cfg: CfgNode, resume: bool) -> OrderedDict[str, Any] | None:
    model = build_model(plain_config(cfg))  # the teacher's files need not be there
    checkpointer = KDCheckpointer(model, cfg.OUTPUT_DIR)
    weights = checkpointer.get_checkpoint_file() if resume else cfg.MODEL.WEIGHTS
    if not weights:
        raise SetupError(
            f"--eval-only: there are no weights to evaluate ({'OUTPUT_DIR' if resume else 'MODEL.WEIGHTS'} is empty). "
            f"Add MODEL.WEIGHTS {cfg.OUTPUT_DIR}/model_final.pth."
        )
    load_strictly(model, weights, "MODEL.WEIGHTS")
    return DistillTrainer.test(cfg, model)
