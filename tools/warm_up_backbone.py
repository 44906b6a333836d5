#!/usr/bin/env python
"""Warms a detector's backbone up on digit classification and writes it for MODEL.WEIGHTS.

python tools/warm_up_backbone.py --config-file digits_det/teacher.yaml --output output/warm_up.pth
"""

import argparse
import logging
import sys

from kd_det.common.command_line import add_config_file, parse_arguments
from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.studies.warm_up import WarmUpSettings, warm_up_backbone


def main() -> None:
    default = WarmUpSettings()
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add_config_file(parser, required=True, help="the detector's configuration")
    parser.add_argument("--output", required=True, help="the checkpoint to write")
    parser.add_argument("--iterations", type=int, default=default.iterations)
    parser.add_argument("--max-lr", type=float, default=default.max_lr)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration")
    args = parse_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%m/%d %H:%M:%S")
    settings = WarmUpSettings(iterations=args.iterations, max_lr=args.max_lr, seed=args.seed)
    try:
        warm_up_backbone(load_config(args.config_file, args.opts), args.output, settings)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
