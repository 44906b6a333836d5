"""``kd-det bench step``: training steps of several kinds, interleaved in one run, and their peak memory."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from kd_det.common.command_line import add_config_file, command_parser, parse_arguments
from kd_det.common.errors import one_line_errors
from kd_det.common.files import write_json
from kd_det.common.registry import import_options
from kd_det.studies.all_methods import PLAIN, measure_methods
from kd_det.studies.methods import METHODS, title
from kd_det.studies.step import ARMS, DISTILLED_ARM, PLAIN_ARM, measure_arms, peak_memory, run_for_memory, steps_of


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with their defaults."""
    parser = command_parser(
        "kd-det bench step",
        "Times a distilled training step against the plain student's, interleaved in one run, and compares peak memory."
        "\n--amp: both in mixed precision, too. --stored: DKD from stored knowledge, the teacher's boxes alone."
        "\n--all: every method, at 320.",
        "kd-det bench step",
        "kd-det bench step --stored --teacher-dtype float32",
        "kd-det bench step --teacher-dtype bfloat16 --sizes 320",
        "kd-det bench step --amp --teacher-dtype auto",
        "kd-det bench step --all",
    )
    add_config_file(parser, help="default coco/dkd_r101_r18.yaml")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--all", action="store_true", help="every method, each with the least time it could take")
    kinds.add_argument("--amp", action="store_true", help="plain and distilled step in mixed precision, too")
    kinds.add_argument("--stored", action="store_true", help="steps from stored knowledge, 128 boxes an image, too")
    parser.add_argument("--sizes", type=int, nargs="+", help="image height and width, pixels (320 512; 320 with --all)")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher-dtype", nargs="+", help="default float32 bfloat16; float32 with --all")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--terms", nargs="+", default=[], help=argparse.SUPPRESS)
    args = parse_arguments(parser, arguments)
    args.config_file = args.config_file or ["coco/dkd_r101_r18.yaml"]
    args.sizes = args.sizes or ([320] if args.all else [320, 512])
    args.teacher_dtype = args.teacher_dtype or (["float32"] if args.all else ["float32", "bfloat16"])
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes the figures to --json."""
    with one_line_errors():
        _measure(parse(arguments))


def _measure(args: argparse.Namespace) -> None:
    if args.memory_of:
        terms = ["KD.TERMS", tuple(args.terms)] if args.terms else []
        dtype, size = args.teacher_dtype[0], args.sizes[0]
        steps = steps_of(ARMS[args.memory_of], args.config_file, args.device, dtype, size, args.images, terms)
        print(json.dumps(run_for_memory(steps)))
        return
    print(
        f"{' '.join(args.config_file)}, {args.images} images, {args.device}, {torch.get_num_threads()} threads, "
        f"{args.rounds} rounds"
    )
    measured = measure_all if args.all else measure
    results = [measured(args, dtype, size) for dtype in args.teacher_dtype for size in args.sizes]
    if args.json:
        write_json(Path(args.json), results)


def for_memory(args: argparse.Namespace, dtype: str, size: int) -> list[str]:
    """The command line of a separate process, except for what it measures the memory of."""
    again = ["-m", "kd_det", "bench", "step", *import_options(), "--config-file", *args.config_file]
    again += ["--sizes", str(size), "--images", str(args.images)]
    return [*again, "--device", args.device, "--teacher-dtype", dtype]


def measure_all(args: argparse.Namespace, dtype: str, size: int) -> dict[str, object]:
    titles = {title(name): terms for name, terms in METHODS.items()}
    times = measure_methods(args.config_file, titles, args.device, dtype, size, args.images, args.rounds)
    again = for_memory(args, dtype, size)
    plain = times[PLAIN].step
    print(f"\n{size}x{size}, teacher in {dtype}; floor: the plain step and the teacher's forward that the method needs")
    print(f"{'':<16}{'step, s':>9}{'/ plain':>9}{'/ floor':>9}{'/ DKD':>9}{'MiB':>7}", flush=True)
    rows = {}
    for name, measured in times.items():
        terms = titles.get(name)
        memory = peak_memory([*again, "--terms", *terms] if terms else again, DISTILLED_ARM if terms else PLAIN_ARM)
        ratios = [measured.step / other for other in (plain, measured.floor, times[title("dkd")].step)]
        columns = "".join(f"{ratio:>8.2f}x" for ratio in ratios)
        print(f"{name:<16}{measured.step:>9.3f}{columns}{memory:>7.0f}", flush=True)
        rows[name] = {**vars(measured), "memory_mib": memory}
    return {"size": size, "dtype": dtype, "methods": rows}


def measure(args: argparse.Namespace, dtype: str, size: int) -> dict[str, object]:
    arms = {name: arm for name, arm in ARMS.items() if not arm.option or getattr(args, arm.option)}
    times = measure_arms(args.config_file, arms, args.device, dtype, size, args.images, args.rounds)
    again = for_memory(args, dtype, size)
    print(f"\n{size}x{size}, teacher in {dtype}")
    print(f"{'':<16}{'step, s':>9}{'/ plain':>9}{'MiB':>7}{'/ plain':>9}")
    rows: dict[str, dict[str, object]] = {}
    plain_memory = 0.0
    for name, measured in times.items():
        memory = peak_memory(again, name)
        plain_memory = plain_memory or memory  # the plain arm is the first
        ratio = memory / plain_memory
        print(f"{arms[name].title:<16}{measured.step:>9.3f}{measured.ratio:>8.2f}x{memory:>7.0f}{ratio:>8.2f}x")
        for part, seconds in sorted(measured.parts.items(), key=lambda part: -part[1]):
            print(f"  {part:<20}{seconds:.3f}", flush=True)
        rows[name] = {**vars(measured), "memory_mib": memory, "memory_ratio": ratio}
    return {"size": size, "dtype": dtype, "arms": rows}
