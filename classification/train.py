"""Trains a student.

python -m classification.train --config-file cifar100/methods/dkd.yaml digits/pairs/resnet20_resnet8.yaml
python -m classification.train --config-file cifar100/base.yaml STUDENT.NAME resnet32x4       # a model alone

Trailing KEY VALUE pairs override the configuration. Several processes: accelerate launch -m classification.train ...
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from classification.building import build_accelerator, check_config
from classification.config import load_config
from classification.data import check_images
from classification.distillers import distiller_class
from classification.evaluate import evaluate_run
from classification.teacher import train_teacher
from classification.training import Trainer
from kd_det.common.command_line import add_config_file, parse_arguments
from kd_det.common.errors import SetupError, one_line_errors


def parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    """The options, Detectron2's where there are such."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=as_written)
    add_config_file(parser)
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR's last checkpoint, if any")
    parser.add_argument("--eval-only", action="store_true", help="evaluate OUTPUT_DIR's model.pth or STUDENT.WEIGHTS")
    parser.add_argument("--check-data", action="store_true", help="first read every image; stop at unreadable ones")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    return parser


def run(args: argparse.Namespace) -> None:
    """What the command does.

    Raises:
        SetupError: something given cannot work.
    """
    cfg = load_config(args.config_file, args.opts)
    check_config(cfg)
    first = int(os.environ.get("RANK", "0")) == 0  # of the processes that a launcher started
    if args.check_data and first:
        _refuse_unreadable(cfg)
    if args.eval_only:
        evaluate_run(cfg)
        return
    needs_teacher = distiller_class(cfg.DISTILLER).needs_teacher
    if first and cfg.TEACHER.NAME and not needs_teacher:
        method = "a method's file, such as cifar100/methods/kd.yaml, sets another"
        print(f"DISTILLER is {cfg.DISTILLER!r}: TEACHER.NAME {cfg.TEACHER.NAME!r} is not used; {method}", flush=True)
    if first and cfg.TEACHER.AUTO_TRAIN and needs_teacher:
        train_teacher(cfg)
    result = Trainer(cfg, build_accelerator(cfg), resume=args.resume).train()
    if first:
        print(f"top-1 {result['last_top1']:.2f} after the last epoch, best {result['best_top1']:.2f}: {cfg.OUTPUT_DIR}")


def _refuse_unreadable(cfg: CfgNode) -> None:
    unreadable = check_images(cfg)
    if unreadable:
        listed = "\n  ".join(unreadable)
        raise SetupError(f"--check-data: {len(unreadable)} images cannot be read; replace or remove them:\n  {listed}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors of the user's are one line."""
    args = parse_arguments(parser(), arguments)
    with one_line_errors():
        run(args)


if __name__ == "__main__":
    main()
