"""Trains a student.

python -m classification.train --config-file cifar100/methods/dkd.yaml digits/pairs/resnet20_resnet8.yaml
python -m classification.train --config-file cifar100/base.yaml STUDENT.NAME resnet32x4       # a model alone

KEY VALUE pairs at the end override the configuration. Several processes: accelerate launch -m classification.train ...
SIGINT (Ctrl-C) and SIGTERM stop training between two steps and save a state for --resume.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from kd_det.common.command_line import add_config_file, parse_arguments
from kd_det.common.errors import SetupError, one_line_errors
from kd_det.common.files import run_lock
from kd_det.common.signals import SIGNALS, end_at_once, noting_signals

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode


def parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    """The options; they have Detectron2's names where it has the same options."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=as_written)
    add_config_file(parser)
    used = parser.add_mutually_exclusive_group()
    used.add_argument("--resume", action="store_true", help="continue from OUTPUT_DIR's last state, if it has a run")
    used.add_argument("--overwrite", action="store_true", help="delete the run that OUTPUT_DIR has, and start again")
    parser.add_argument("--eval-only", action="store_true", help="evaluate OUTPUT_DIR's model.pth or STUDENT.WEIGHTS")
    parser.add_argument("--check-data", action="store_true", help="first read every image; stop at unreadable ones")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. User errors are one line."""
    with one_line_errors(), noting_signals(end_at_once):  # imports take seconds, in which Ctrl-C is one line too
        run(parse_arguments(parser(), arguments))  # with --import it imports the user's own code


def run(args: argparse.Namespace) -> None:
    """Trains, or evaluates.

    Args:
        args: from ``parser``.

    Raises:
        SetupError: an option or a key is not valid.
        StopRequested: a signal stopped the run.
    """
    from classification.checkpoint import check_folder, remove_leftovers
    from classification.config import check_config, load_config
    from classification.evaluate import evaluate_run
    from classification.trainer import Trainer, build_accelerator

    cfg = load_config(args.config_file, args.opts)
    check_config(cfg)
    first = int(os.environ.get("RANK", "0")) == 0  # of the processes that a launcher started
    if args.check_data and first:
        _refuse_unreadable(cfg)
    if args.eval_only:
        evaluate_run(cfg)
        return
    with run_lock(cfg.OUTPUT_DIR) if first else nullcontext():  # the other processes wait for the first one
        if first:
            remove_leftovers(Path(cfg.OUTPUT_DIR))
            check_folder(cfg, resume=args.resume, overwrite=args.overwrite)
            _prepare_teacher(cfg)
        with _default_signals():
            accelerator = build_accelerator(cfg)
        trainer = Trainer(cfg, accelerator, resume=args.resume, overwrite=args.overwrite)
        with noting_signals() as received:
            if received.number:  # a library has swallowed the exception that end_at_once raised
                end_at_once(received.number)
            result = trainer.train(received)
    if first:
        print(f"top-1 {result['last_top1']:.2f} after the last epoch, best {result['best_top1']:.2f}: {cfg.OUTPUT_DIR}")


def _prepare_teacher(cfg: CfgNode) -> None:
    from classification.auto_train import train_teacher
    from classification.distillers import distiller_class

    needed = distiller_class(cfg.DISTILLER).needs_teacher
    if cfg.TEACHER.NAME and not needed:
        method = "a method's file, such as cifar100/methods/kd.yaml, sets another"
        print(f"DISTILLER is {cfg.DISTILLER!r}: TEACHER.NAME {cfg.TEACHER.NAME!r} is not used; {method}", flush=True)
    if cfg.TEACHER.AUTO_TRAIN and needed:
        train_teacher(cfg)


def _refuse_unreadable(cfg: CfgNode) -> None:
    from classification.data import check_images

    unreadable = check_images(cfg)
    if unreadable:
        listed = "\n  ".join(unreadable)
        raise SetupError(f"--check-data: {len(unreadable)} images cannot be read; replace or remove them:\n  {listed}")


@contextmanager
def _default_signals() -> Iterator[None]:
    """Lets signals end one of several processes at once.

    Processes wait for each other in compiled code, which Python's signal handlers do not interrupt.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
