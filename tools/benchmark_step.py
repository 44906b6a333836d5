#!/usr/bin/env python
"""Times a distilled training step against the plain student's, interleaved in one run, and compares peak memory.

python tools/benchmark_step.py
python tools/benchmark_step.py --teacher-dtype bfloat16 --sizes 320
"""

from __future__ import annotations

import argparse
import json

import torch

from kd_det.benchmark.step import benchmark_config, measure_times, peak_memory, run_for_memory


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="configs/coco/dkd_r101_r18.yaml")
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 512], help="image height and width, pixels")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher-dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--memory-of", choices=["plain", "distilled"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.memory_of:
        cfg = benchmark_config(args.config_file, args.device, args.teacher_dtype[0])
        print(json.dumps(run_for_memory(cfg, args.sizes[0], args.images, args.memory_of)))
        return
    print(
        f"{args.config_file}, {args.images} images, {args.device}, {torch.get_num_threads()} threads, "
        f"{args.rounds} rounds"
    )
    results = [measure(args, dtype, size) for dtype in args.teacher_dtype for size in args.sizes]
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


def measure(args: argparse.Namespace, dtype: str, size: int) -> dict[str, object]:
    times = measure_times(benchmark_config(args.config_file, args.device, dtype), size, args.images, args.rounds)
    again = [__file__, "--config-file", args.config_file, "--sizes", str(size), "--images", str(args.images)]
    again += ["--device", args.device, "--teacher-dtype", dtype]
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


if __name__ == "__main__":
    main()
