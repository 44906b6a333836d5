#!/usr/bin/env python
"""Distillation on the digits scenes, from nothing to a table and pictures.

python tools/run_digits_det.py --demo                            # one seed, minutes on two CPU cores
python tools/run_digits_det.py --seeds 3                         # all methods
python tools/run_digits_det.py --seeds 3 --methods dkd reviewkd --schedule long
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

import torch

from kd_det.studies.digits_det import SCHEDULES, Benchmark, arms_of, seeds_of
from kd_det.studies.methods import METHODS


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--demo", action="store_true", help="one seed, DKD alone, into output/demo")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each student arm (default 3)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"default: {' '.join(METHODS)}")
    parser.add_argument("--schedule", choices=SCHEDULES, default="demo", help="how long (default demo)")
    parser.add_argument("--output-dir", type=Path, help="default output/demo or output/digits_det/<schedule>")
    parser.add_argument("--jobs", type=int, default=1, help="student runs at a time, sharing the cores (default 1)")
    parser.add_argument("--device", default=device, help=f"cpu or cuda (default here {device})")
    args = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    default = Path("output/demo") if args.demo else Path("output/digits_det") / args.schedule
    try:
        if args.jobs < 1:
            raise ValueError(f"--jobs is {args.jobs}; give 1 or more")
        seeds = seeds_of(1 if args.demo else args.seeds)
        folder = args.output_dir or default
        arms = arms_of(["dkd"] if args.demo else args.methods)
        benchmark = Benchmark(folder, arms, seeds, args.schedule, args.device, args.jobs)
        benchmark.run(shlex.join(["python", *sys.argv]))
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    main()
