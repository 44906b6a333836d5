#!/usr/bin/env python
"""Measures how sure the teacher is of the objects of a data set, and prints the beta of DKD that goes with it.

python tools/suggest_beta.py --config-file configs/coco/dkd_r101_r18.yaml --on coco_2017_val --images 500
"""

import argparse

from kd_det.data.coco_json import add_dataset_option
from kd_det.engine.setup import one_line_errors, read_setup
from kd_det.teacher_confidence import report_beta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the student's configuration, with KD.TEACHER")
    parser.add_argument("--on", default="", metavar="NAME", help="the data set (default: the first of DATASETS.TRAIN)")
    parser.add_argument("--images", type=int, default=500, help="how many images, evenly spread (default 500)")
    add_dataset_option(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration")
    args = parser.parse_args()
    with one_line_errors():
        print(report_beta(read_setup(args.config_file, args.opts, args.dataset), args.on, args.images))


if __name__ == "__main__":
    main()
