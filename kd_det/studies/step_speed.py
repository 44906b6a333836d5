"""``kd-det bench step``: a distilled training step against the plain student's, interleaved, and their peak memory."""

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
from kd_det.studies.step import benchmark_config, measure_times, peak_memory, run_for_memory


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with their defaults."""
    parser = command_parser(
        "kd-det bench step",
        "Times a distilled training step against the plain student's, interleaved in one run, and compares peak memory."
        "\n--all: every method, at 320.",
        "kd-det bench step",
        "kd-det bench step --teacher-dtype bfloat16 --sizes 320",
        "kd-det bench step --all",
    )
    add_config_file(parser, help="default coco/dkd_r101_r18.yaml")
    parser.add_argument("--all", action="store_true", help="every method, each with the least time it could take")
    parser.add_argument("--sizes", type=int, nargs="+", help="image height and width, pixels (320 512; 320 with --all)")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher-dtype", nargs="+", help="default float32 bfloat16; float32 with --all")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--memory-of", choices=["plain", "distilled"], help=argparse.SUPPRESS)
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
        cfg = benchmark_config(args.config_file, args.device, args.teacher_dtype[0])
        cfg.KD.TERMS = args.terms or cfg.KD.TERMS
        print(json.dumps(run_for_memory(cfg, args.sizes[0], args.images, args.memory_of)))
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
        memory = peak_memory([*again, "--terms", *terms] if terms else again, "distilled" if terms else "plain")
        ratios = [measured.step / other for other in (plain, measured.floor, times[title("dkd")].step)]
        columns = "".join(f"{ratio:>8.2f}x" for ratio in ratios)
        print(f"{name:<16}{measured.step:>9.3f}{columns}{memory:>7.0f}", flush=True)
        rows[name] = {**vars(measured), "memory_mib": memory}
    return {"size": size, "dtype": dtype, "methods": rows}


def measure(args: argparse.Namespace, dtype: str, size: int) -> dict[str, object]:
    times = measure_times(benchmark_config(args.config_file, args.device, dtype), size, args.images, args.rounds)
    again = for_memory(args, dtype, size)
    memory = {kind: peak_memory(again, kind) for kind in ("plain", "distilled")}
    print(f"\n{size}x{size}, teacher in {dtype}")
    print(f"  time    plain {times.plain:.3f} s, distilled {times.distilled:.3f} s: {times.ratio:.2f}x")
    for name, seconds in sorted(times.parts.items(), key=lambda part: -part[1]):
        print(f"          {name:<18}{seconds:.3f} s")
    ratio = memory["distilled"] / memory["plain"]
    print(
        f"  memory  plain {memory['plain']:.0f} MiB, distilled {memory['distilled']:.0f} MiB: {ratio:.2f}x", flush=True
    )
    return {"size": size, "dtype": dtype, **vars(times), "ratio": times.ratio, "memory": memory, "memory_ratio": ratio}
