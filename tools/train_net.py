#!/usr/bin/env python
"""Trains or evaluates a detector, distilled or plain, with Detectron2's own options.

python tools/train_net.py --config-file coco/dkd_r101_r18.yaml --num-gpus 8
python tools/train_net.py --config-file coco/dkd_r101_r18.yaml my_schedule.yaml SOLVER.BASE_LR 0.005
python tools/train_net.py --config-file my_student.yaml --dataset mine_train=train.json,images \
    --dataset mine_val=val.json,images DATASETS.TRAIN "('mine_train',)" DATASETS.TEST "('mine_val',)"
"""

from detectron2.engine import default_argument_parser, launch

from kd_det.common.command_line import parse_arguments
from kd_det.data.coco_json import add_dataset_option
from kd_det.engine import run


def main() -> None:
    parser = default_argument_parser(epilog=__doc__)
    add_dataset_option(parser)
    args = parse_arguments(parser)
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
