#!/usr/bin/env python
"""Trains or evaluates a detector, with Detectron2's own options: ``kd-det train``.

python tools/train_net.py --config-file coco/dkd_r101_r18.yaml --num-gpus 8
"""

from kd_det.common.errors import one_line_errors
from kd_det.common.signals import end_at_once, noting_signals

if __name__ == "__main__":
    with one_line_errors(), noting_signals(end_at_once):  # the import takes seconds
        from kd_det.engine.run import train

        train()
