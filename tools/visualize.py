#!/usr/bin/env python
"""Draws ground truth, teacher and student side by side, one PNG for each image.

python tools/visualize.py --config-file coco/dkd_r101_r18.yaml --weights output/model_final.pth \\
    --input datasets/coco/val2017/000000000139.jpg my_images --output output/pictures
"""

import argparse
from collections.abc import Sequence

from kd_det.common.command_line import UpToOverrides, add_config_file, parse_arguments
from kd_det.data.coco_json import add_dataset_option, parse_option
from kd_det.engine.setup import one_line_errors, read_setup
from kd_det.engine.visualization import visualize


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_file(parser, required=True, help="the student's configuration")
    parser.add_argument("--weights", default="", help="the student's checkpoint (default OUTPUT_DIR/model_final.pth)")
    inputs = {"nargs": "+", "action": UpToOverrides, "required": True, "metavar": "IMAGE_OR_FOLDER"}
    parser.add_argument("--input", **inputs, help="images, and folders whose images, sub-folders' too, are drawn")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score to draw (default 0.5)")
    add_dataset_option(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration, last of all")
    args = parse_arguments(parser, arguments)
    with one_line_errors():
        cfg = read_setup(args.config_file, args.opts, args.dataset)
        datasets = [parse_option(text)[0] for text in args.dataset]
        for path in visualize(cfg, args.weights, args.input, args.output, args.threshold, datasets):
            print(path)


if __name__ == "__main__":
    main()
