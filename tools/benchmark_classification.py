#!/usr/bin/env python
"""Speed of classification training: the data pipeline, and a step. Figures of one run, interleaved, medians.

python tools/benchmark_classification.py
python tools/benchmark_classification.py --rounds 9 --compile
"""

import argparse

import torch
from tabulate import tabulate

from classification.studies.pipeline import compare_pipelines
from classification.studies.steps import Arm, compare_steps
from kd_det.common.environment import described, hardware

BY_HAND, DKD = "DKD, loop written by hand", "DKD"
ARMS = [
    Arm(BY_HAND, by_hand=True),
    Arm(DKD),
    Arm("SDD-DKD", ("DISTILLER", "sdd")),
    Arm("DKD, channels_last", ("SOLVER.CHANNELS_LAST", "True")),
    Arm("DKD, bf16", ("SOLVER.MIXED_PRECISION", "bf16")),
    Arm("DKD, bf16, channels_last", ("SOLVER.MIXED_PRECISION", "bf16", "SOLVER.CHANNELS_LAST", "True")),
]
COMPILED = Arm("DKD, compiled", ("SOLVER.COMPILE", "True"))


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all arms (default 5)")
    parser.add_argument("--steps", type=int, default=4, help="steps of an arm in a round (default 4)")
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes to start")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{described(hardware(device))}, torch {torch.__version__}\n")
    pipelines = compare_pipelines(args.rounds)
    print(f"in-memory pipeline {pipelines['in_memory']:,.0f} images/s, torchvision with 2 workers "
          f"{pipelines['torchvision']:,.0f}: {pipelines['ratio']:.1f}x\n")  # fmt: skip
    arms = [*ARMS, COMPILED] if args.compile else ARMS
    results = compare_steps(
        arms, teacher=args.teacher, student=args.student, batch_size=args.batch_size, rounds=args.rounds,
        steps=args.steps,
    )  # fmt: skip
    seconds = {result["title"]: result["seconds"] for result in results}
    memory = {result["title"]: f"{result['peak_memory_mib']:.0f}" for result in results}
    rows = [
        [title, f"{1000 * s:.0f} ms", f"{s / seconds[BY_HAND]:.3f}", f"{s / seconds[DKD]:.3f}", memory[title]]
        for title, s in seconds.items()
    ]
    print(f"{args.teacher} -> {args.student}, {args.batch_size} images a step")
    print(tabulate(rows, ["step", "median", "to by hand", "to DKD", "peak MiB"], tablefmt="github"))


if __name__ == "__main__":
    main()
