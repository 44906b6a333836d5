#!/usr/bin/env python
"""Trains or evaluates a detector, with Detectron2's own options: ``kd-det train``.

python tools/train_net.py --config-file coco/dkd_r101_r18.yaml --num-gpus 8
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.engine.commands:train")
