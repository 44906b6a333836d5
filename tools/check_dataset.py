#!/usr/bin/env python
"""Reports on data sets in COCO format: classes, box sizes, faults, duplicates, and the teacher's classes beside them.

python tools/check_dataset.py --config-file my_student.yaml --dataset mine_train=train.json,images
python tools/check_dataset.py --dataset mine=annotations.json,images --sizes

Exit code 0; 1 if a fault would stop training; 2 if a set cannot be looked at.
"""

import argparse
import sys
from collections.abc import Sequence

from kd_det.common.command_line import add_config_file, parse_arguments
from kd_det.data.coco_json import add_dataset_option, parse_option
from kd_det.engine.dataset_check import check_sets
from kd_det.engine.setup import one_line_errors, read_setup


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered sets (default: all that are given)")
    add_config_file(parser, help="a student's configuration: its sets, its teacher's classes")
    add_dataset_option(parser)
    parser.add_argument("--sizes", action="store_true", help="decode every image as training does")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, after all else")
    args = parse_arguments(parser, arguments)
    with one_line_errors():
        cfg = read_setup(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"], args.dataset)
        given = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *(parse_option(text)[0] for text in args.dataset)]
        report, stops = check_sets(cfg, args.names or given, sizes=args.sizes, with_model=bool(args.config_file))
        print(report)
        sys.exit(1 if stops else 0)


if __name__ == "__main__":
    main()
