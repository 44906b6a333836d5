#!/usr/bin/env python
"""Trains or evaluates a detector, distilled or plain, with Detectron2's own options.

python tools/train_net.py --config-file configs/coco/dkd_r101_r18.yaml --num-gpus 8
"""

from detectron2.engine import default_argument_parser, launch

from kd_det.engine import run


def main() -> None:
    args = default_argument_parser().parse_args()
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    main()
