#!/usr/bin/env python
"""What every distiller costs: step time, memory and parameters in one interleaved run, beside the accuracy it gives.

python tools/efficiency.py
python tools/efficiency.py --methods mcld hcd --rounds 9                      # with DKD, to which they are compared
python tools/efficiency.py --data digits --teacher resnet20 --student resnet8

The steps are taken on noise of CIFAR-100's shape: 50,000 samples, which is the size of MCLD's queue, of 100 classes.
All methods are in memory at once, about 1 GiB each; --methods takes fewer of them. Accuracies are those of a
results file of tools/run_classification.py. Into --output-dir go efficiency.json and the picture of accuracy against
time, efficiency.png and .svg.
"""

import argparse
import sys
from pathlib import Path

import torch

from classification.results import commit
from classification.studies.efficiency import (
    choose_arms,
    draw_scatter,
    efficiency_table,
    make_rows,
    points,
    read_accuracies,
)
from classification.studies.step_worker import NOISE
from classification.studies.steps import compare_steps
from kd_det.common.environment import described, hardware, versions
from kd_det.common.errors import SetupError, one_line_errors
from kd_det.common.figures import save_figure
from kd_det.common.files import write_json

NAME = "efficiency"


def parse() -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all methods (default 5)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a method in a round (default 4)")
    parser.add_argument("--data", choices=[NOISE, "digits"], default=NOISE, help=f"default {NOISE}")
    results = "results/classification_digits.json"
    parser.add_argument("--results", default=results, metavar="FILE", help=f"default {results}; '': no accuracies")
    parser.add_argument("--output-dir", type=Path, default=Path("output/analysis") / NAME, metavar="DIR")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    for option in ("batch_size", "rounds", "steps"):
        if getattr(args, option) < 1:
            raise SetupError(f"--{option.replace('_', '-')} {getattr(args, option)}: give 1 or more.")
    arms = choose_arms(args.methods)
    accuracies = read_accuracies(Path(args.results), args.teacher, args.student) if args.results else {"top1": {}}
    sizes = {"batch_size": args.batch_size, "rounds": args.rounds, "steps": args.steps, "data": args.data}
    measured = compare_steps(arms, teacher=args.teacher, student=args.student, **sizes)
    rows = make_rows(measured, accuracies.pop("top1"))
    machine = hardware("cuda" if torch.cuda.is_available() else "cpu")
    record = {"kind": NAME, "teacher": args.teacher, "student": args.student, **sizes, "accuracies_of": accuracies}
    record |= {"rows": rows, "commit": commit(), "versions": versions(), "hardware": machine}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(args.output_dir / f"{NAME}.json", record)
    pair = f"{args.teacher} → {args.student}, {args.batch_size} images a step"
    print(f"{pair}, {args.data}; {described(machine)}, torch {torch.__version__}\n\n{efficiency_table(rows)}\n")
    print(f"wrote {args.output_dir / NAME}.json")
    if known := points(rows):
        of = f"top-1 of {accuracies['teacher']} → {accuracies['student']} on {accuracies['data']}"
        for path in save_figure(draw_scatter(known, f"step of {pair}; {of}"), args.output_dir, NAME):
            print(f"wrote {path}")
    else:
        print("no picture: none of these methods has an accuracy")


def main() -> None:
    args = parse()
    with one_line_errors():
        try:
            measure(args)
        except RuntimeError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
