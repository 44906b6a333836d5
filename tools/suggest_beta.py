#!/usr/bin/env python
"""Measures how sure the teacher is of its targets, and prints the beta of DKD that goes with it.

python tools/suggest_beta.py --config-file coco/dkd_r101_r18.yaml --on coco_2017_val --images 500
python tools/suggest_beta.py --config-file digits/pairs/resnet20_resnet8.yaml

For a detector the targets are the objects of a data set, for a classifier its validation images. The figures and a
histogram go into --output-dir: gaps.json, gaps.png, gaps.svg.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from classification.config import load_config
from classification.studies.beta import classifier_gaps, is_classification
from kd_det.common.beta import MeasuredGaps, describe, write
from kd_det.common.command_line import add_config_file, output_folder, parse_arguments
from kd_det.common.errors import SetupError, one_line_errors

DETECTION_IMAGES = 500


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_file(parser, required=True, help="the student's configuration, with its teacher")
    spread = f"how many images, evenly spread (default {DETECTION_IMAGES} for a detector, all for a classifier)"
    parser.add_argument("--images", type=int, help=spread)
    parser.add_argument("--output-dir", type=Path, default=Path("output/analysis/beta"), metavar="DIR")
    detection = parser.add_argument_group("detection")
    data_set = "the data set (default: the first of DATASETS.TRAIN)"
    detection.add_argument("--on", default="", metavar="NAME", help=data_set)
    own = "a data set of your own in COCO format, as one entry of DATASETS.COCO_JSON; may be given several times"
    detection.add_argument("--dataset", action="append", default=[], metavar="NAME=JSON,FOLDER", help=own)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration")
    args = parse_arguments(parser, arguments)
    with one_line_errors():
        gaps = of_classifier(args) if is_classification(args.config_file) else of_detector(args)
        print(describe(gaps) + "\n")
        for path in write(gaps, output_folder("--output-dir", args.output_dir)):
            print(f"wrote {path}")


def of_classifier(args: argparse.Namespace) -> MeasuredGaps:
    for option, value in (("--on", args.on), ("--dataset", args.dataset)):
        if value:
            raise SetupError(f"{option} {value}: it is for detectors; a classifier's data set is DATA.NAME.")
    return classifier_gaps(load_config(args.config_file, args.opts), args.images)


def of_detector(args: argparse.Namespace) -> MeasuredGaps:
    # Only here: classification does without Detectron2.
    from kd_det.engine.setup import read_setup
    from kd_det.studies.teacher_confidence import detector_gaps

    images = DETECTION_IMAGES if args.images is None else args.images
    return detector_gaps(read_setup(args.config_file, args.opts, args.dataset), args.on, images)


if __name__ == "__main__":
    main()
