#!/usr/bin/env python
"""Trains or evaluates a detector, distilled or plain, with Detectron2's own options.

python tools/train_net.py --config-file coco/dkd_r101_r18.yaml --num-gpus 8
python tools/train_net.py --config-file coco/dkd_r101_r18.yaml my_schedule.yaml SOLVER.BASE_LR 0.005
python tools/train_net.py --config-file my_student.yaml --dataset mine_train=train.json,images \
    --dataset mine_val=val.json,images DATASETS.TRAIN "('mine_train',)" DATASETS.TEST "('mine_val',)"
"""

from __future__ import annotations

from collections.abc import Sequence

from kd_det.common.command_line import parse_arguments
from kd_det.common.errors import one_line_errors
from kd_det.common.signals import end_at_once, noting_signals


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses ``arguments`` (None: the process's own) and trains or evaluates."""
    with one_line_errors(), noting_signals(end_at_once):
        # These take seconds, and a Ctrl-C meanwhile is to end with one line too.
        from detectron2.engine import default_argument_parser

        from kd_det.data.coco_json import add_dataset_option
        from kd_det.engine import run

        parser = default_argument_parser(epilog=__doc__)
        add_dataset_option(parser)
        run(parse_arguments(parser, arguments))


if __name__ == "__main__":
    main()
