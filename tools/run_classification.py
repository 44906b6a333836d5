#!/usr/bin/env python
"""Classification runs over seeds, from configurations to one results file and table.

python tools/run_classification.py --config-file configs/digits/dkd_resnet20_resnet8.yaml --seeds 3
python tools/run_classification.py --config-file configs/digits/*.yaml --results results/classification_digits.json

A teacher that is not there yet is trained first where TEACHER.AUTO_TRAIN is on. Finished runs are reused, interrupted
ones resumed.
"""

import argparse
import sys
from pathlib import Path

from classification.benchmark.seeds import make_table, run_seeds, update_results
from classification.config import load_config
from kd_det.common.errors import SetupError, one_line_errors


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--config-file", nargs="+", required=True, metavar="FILE")
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
    rows = run_seeds(args.config_file, range(1, args.seeds + 1), args.opts, args.jobs, args.threads)
    cfg = load_config(args.config_file[0], args.opts)
    path = args.results or Path(cfg.OUTPUT_DIR) / "results.json"
    update_results(path, rows, cfg.DATA.NAME)
    print(make_table(rows))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
