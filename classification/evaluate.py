"""Evaluates a student.

python -m classification.evaluate --config-file cifar100/methods/dkd.yaml digits/pairs/resnet20_resnet8.yaml

Takes OUTPUT_DIR's model.pth, or STUDENT.WEIGHTS. Prints one line of JSON.
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
    """Evaluates, prints and returns {"top1": ..., "top5": ...}, in percent.

    Raises:
        SetupError: there is no such model, file or data.
    """
    from classification.building import build_accelerator, build_data, build_student
    from classification.checkpoint import STUDENT
    from classification.evaluation import evaluate

    cfg = cfg.clone()
    cfg.STUDENT.PRETRAINED = False
    cfg.STUDENT.WEIGHTS = cfg.STUDENT.WEIGHTS or str(Path(cfg.OUTPUT_DIR) / STUDENT)
    accelerator = build_accelerator(cfg)
    data = build_data(cfg, accelerator)
    student = build_student(cfg, data).to(accelerator.device)
    with accelerator.autocast():
        figures = evaluate(student, data.val, data.num_classes, accelerator.device)
    if accelerator.is_main_process:
        print(json.dumps({"weights": cfg.STUDENT.WEIGHTS, **figures}))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add_config_file(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    with one_line_errors():  # imports take seconds; a Ctrl-C among them is one line as well
        args = parse_arguments(parser, arguments)
        from classification.building import check_config
        from classification.config import load_config

        cfg = load_config(args.config_file, args.opts)
        check_config(cfg)
        evaluate_run(cfg)


if __name__ == "__main__":
    main()
