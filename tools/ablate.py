#!/usr/bin/env python
"""Sweeps keys of a configuration over values and seeds.

python tools/ablate.py --config-file cifar100/methods/dkd.yaml digits/pairs/resnet20_resnet8.yaml \\
    --grid DKD.ALPHA 0.5 1.0 2.0 --grid DKD.BETA 1.0 2.0 8.0 --seeds 2 --jobs 2 --memory-gib 4

Every combination is checked before the first run. The same command goes on where it was interrupted: finished runs are
reused, interrupted ones resumed. Into --output-dir go ablation.csv, ablation.json and, for one key or two, a heat map,
ablation.png and .svg; its folder "runs" has the runs.
"""

import argparse
import sys
from pathlib import Path

from classification.studies.ablation import (
    MOST_KEYS,
    Ablation,
    ablation_table,
    draw_heat_map,
    heat_map,
    write_ablation_csv,
)
from kd_det.common.command_line import add_config_file, parse_arguments
from kd_det.common.errors import one_line_errors
from kd_det.common.figures import save_figure
from kd_det.common.files import write_json

NAME = "ablation"


def parse() -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add_config_file(parser, required=True)
    keys = "a key and its values; may be given several times, for all combinations"
    parser.add_argument("--grid", nargs="+", action="append", required=True, metavar="KEY VALUE", help=keys)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each combination, SEED 1, 2, ... (default 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, at the most (default 1)")
    limit = "another run is started only if the largest peak measured so far leaves room (default: no limit)"
    parser.add_argument("--memory-gib", type=float, metavar="GIB", help=limit)
    shared = "CPU threads of each run (default: the cores shared out; of one run at a time, torch's choice)"
    parser.add_argument("--threads", type=int, help=shared)
    parser.add_argument("--output-dir", type=Path, default=Path("output/analysis") / NAME, metavar="DIR")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides, the same in all runs")
    return parse_arguments(parser)


def ablate(args: argparse.Namespace) -> None:
    ablation = Ablation(
        tuple(args.config_file), tuple(args.opts), tuple(map(tuple, args.grid)), args.seeds, args.output_dir, args.jobs,
        args.memory_gib, args.threads,
    )  # fmt: skip
    rows = ablation.run()
    write_json(args.output_dir / f"{NAME}.json", ablation.record(rows))
    write_ablation_csv(args.output_dir / f"{NAME}.csv", rows)
    print(f"\n{ablation_table(rows)}\n\nwrote {args.output_dir / NAME}.json and .csv")
    if len(args.grid) > MOST_KEYS:
        print(f"no heat map: it has {MOST_KEYS} keys at the most, here are {len(args.grid)}")
        return
    title = f"{ablation.name}: last top-1, mean ± std of {args.seeds} seeds"
    for path in save_figure(draw_heat_map(heat_map(rows), title), args.output_dir, NAME):
        print(f"wrote {path}")


def main() -> None:
    args = parse()
    with one_line_errors():
        try:
            ablate(args)
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("interrupted; the same command goes on from the last checkpoints")


if __name__ == "__main__":
    main()
