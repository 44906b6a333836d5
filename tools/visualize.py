#!/usr/bin/env python
"""Draws ground truth, teacher and student side by side: ``kd-det visualize``.

python tools/visualize.py --config-file coco/dkd_r101_r18.yaml --input my_images --output output/pictures
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.engine.commands:visualize")
