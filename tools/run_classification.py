#!/usr/bin/env python
"""Classification runs over seeds, from configurations to one results file and table.

python tools/run_classification.py --methods cifar100/methods/kd.yaml cifar100/methods/dkd.yaml \\
    --pairs digits/pairs/resnet20_resnet8.yaml --config-file digits/base.yaml STUDENT.NAME resnet8 --seeds 3
python tools/run_classification.py --methods configs/cifar100/methods/*.yaml \\
    --pairs digits/pairs/resnet20_resnet8.yaml --results results/classification_digits.json

Each method is run with each pair. --config-file is one more run, of files merged from left to right and KEY VALUE
pairs, as classification.train takes them; it may be given several times.

A teacher that is not there yet is trained first where TEACHER.AUTO_TRAIN is on. Finished runs are reused, interrupted
ones resumed.
"""

import argparse
import sys
from pathlib import Path

from classification.config import load_config
from classification.studies.seeds import choices, run_seeds, seeds_table, update_results
from kd_det.common.errors import SetupError, one_line_errors


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--methods", nargs="+", default=[], metavar="FILE", help="methods' files, for --pairs")
    parser.add_argument("--pairs", nargs="+", default=[], metavar="FILE", help="pairs' files, for --methods")
    one = "files, merged, and KEY VALUE pairs of one run; may be given several times"
    parser.add_argument("--config-file", nargs="+", action="append", default=[], metavar="FILE", help=one)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration, SEED 1, 2, ... (default 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--threads", type=int, help="CPU threads of each run (default: torch's choice)")
    parser.add_argument("--results", type=Path, help="the results file to update (default OUTPUT_DIR/results.json)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of every configuration")
    args = parser.parse_args()
    with one_line_errors():
        try:
            run(args)
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("interrupted; the same command goes on from the last checkpoints")


def run(args: argparse.Namespace) -> None:
    if min(args.seeds, args.jobs) < 1:
        raise SetupError(f"--seeds {args.seeds} --jobs {args.jobs}: give 1 or more of each.")
    chosen = choices(args.config_file, args.methods, args.pairs)
    rows = run_seeds(chosen, range(1, args.seeds + 1), args.opts, args.jobs, args.threads)
    cfg = load_config(chosen[0].files, [*chosen[0].overrides, *args.opts])
    path = args.results or Path(cfg.OUTPUT_DIR) / "results.json"
    update_results(path, rows, cfg.DATA.NAME)
    print(seeds_table(rows))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
