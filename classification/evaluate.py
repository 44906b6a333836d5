"""Evaluates a student.

python -m classification.evaluate --config-file cifar100/methods/dkd.yaml digits/pairs/resnet20_resnet8.yaml

Evaluates OUTPUT_DIR's model.pth, or STUDENT.WEIGHTS. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_det.common.command_line import add_config_file, parse_arguments
from kd_det.common.errors import one_line_errors

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode


def evaluate_run(cfg: CfgNode) -> dict[str, float]:
    """Evaluates the student; prints and returns {"top1": ..., "top5": ...}, in percent.

    Raises:
        SetupError: there is no such model, file or data set.
    """
    from classification.checkpoint import STUDENT
    from classification.data import build_data
    from classification.networks import build_student
    from classification.results import measure_accuracy
    from classification.trainer import build_accelerator

    cfg = cfg.clone()
    cfg.STUDENT.PRETRAINED = False
    cfg.STUDENT.WEIGHTS = cfg.STUDENT.WEIGHTS or str(Path(cfg.OUTPUT_DIR) / STUDENT)
    accelerator = build_accelerator(cfg)
    data = build_data(cfg, accelerator.device, accelerator.process_index, accelerator.num_processes)
    student = build_student(cfg, data).to(accelerator.device)
    with accelerator.autocast():
        figures = measure_accuracy(student, data.val, data.num_classes, accelerator.device)
    if accelerator.is_main_process:
        print(json.dumps({"weights": cfg.STUDENT.WEIGHTS, **figures}))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add_config_file(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    with one_line_errors():  # imports take seconds, in which Ctrl-C is one line too
        args = parse_arguments(parser, arguments)
        from classification.config import check_config, load_config

        cfg = load_config(args.config_file, args.opts)
        check_config(cfg)
        evaluate_run(cfg)


if __name__ == "__main__":
    main()
