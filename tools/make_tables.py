#!/usr/bin/env python
"""Writes MODEL_ZOO.md from the results files: the papers' rows next to ours.

python tools/make_tables.py
python tools/make_tables.py --check          # fails if the page does not match the results
"""

import argparse
import sys
from pathlib import Path

from classification.studies import model_zoo as classification
from kd_det.common.errors import SetupError
from kd_det.studies import model_zoo as detection
from kd_det.studies import study_tables

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of *.json (default results)")
    parser.add_argument("--output", type=Path, default=ROOT / "MODEL_ZOO.md", help="default MODEL_ZOO.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    args = parser.parse_args()
    try:
        parts = [part.render(part.read_results(args.results)) for part in (detection, study_tables, classification)]
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    page = "\n".join(part for part in parts if part)
    if args.check:
        sys.exit(None if args.output.is_file() and args.output.read_text() == page else f"{args.output} is out of date")
    args.output.write_text(page)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
