"""What ``python -m classification.train`` does, from its options to the result."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fvcore.common.config import CfgNode

from classification.building import build_accelerator, check_config
from classification.config import load_config
from classification.data import check_images
from classification.distillers import distiller_class
from classification.evaluate import evaluate_run
from classification.resuming import check_folder, remove_leftovers
from classification.teacher import train_teacher
from classification.training import Trainer
from kd_det.common.errors import SetupError
from kd_det.common.files import run_lock
from kd_det.common.signals import SIGNALS, Received


def run(args: argparse.Namespace, received: Received, begin: Callable[[], None]) -> None:
    """Trains, or evaluates.

    Args:
        args: of ``train.parser``.
        received: of ``noting_signals``; its signal stops training between two steps.
        begin: called when all is built, before the first step.

    Raises:
        SetupError: something given cannot work.
        StopRequested: after a signal.
    """
    cfg = load_config(args.config_file, args.opts)
    check_config(cfg)
    first = int(os.environ.get("RANK", "0")) == 0  # of the processes that a launcher started
    if args.check_data and first:
        _refuse_unreadable(cfg)
    if args.eval_only:
        evaluate_run(cfg)
        return
    with run_lock(cfg.OUTPUT_DIR) if first else nullcontext():  # the others wait for the first
        if first:
            remove_leftovers(Path(cfg.OUTPUT_DIR))
            check_folder(cfg, resume=args.resume, overwrite=args.overwrite)
            _prepare_teacher(cfg)
        with _default_signals():
            accelerator = build_accelerator(cfg)
        trainer = Trainer(cfg, accelerator, resume=args.resume, overwrite=args.overwrite)
        begin()
        result = trainer.train(received)
    if first:
        print(f"top-1 {result['last_top1']:.2f} after the last epoch, best {result['best_top1']:.2f}: {cfg.OUTPUT_DIR}")


def _prepare_teacher(cfg: CfgNode) -> None:
    needed = distiller_class(cfg.DISTILLER).needs_teacher
    if cfg.TEACHER.NAME and not needed:
        method = "a method's file, such as cifar100/methods/kd.yaml, sets another"
        print(f"DISTILLER is {cfg.DISTILLER!r}: TEACHER.NAME {cfg.TEACHER.NAME!r} is not used; {method}", flush=True)
    if cfg.TEACHER.AUTO_TRAIN and needed:
        train_teacher(cfg)


def _refuse_unreadable(cfg: CfgNode) -> None:
    unreadable = check_images(cfg)
    if unreadable:
        listed = "\n  ".join(unreadable)
        raise SetupError(f"--check-data: {len(unreadable)} images cannot be read; replace or remove them:\n  {listed}")


@contextmanager
def _default_signals() -> Iterator[None]:
    """Processes wait for each other in compiled code, which no handler of Python's interrupts: let signals end them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
