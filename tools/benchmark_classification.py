#!/usr/bin/env python
"""Times classification training, its data and its steps: ``kd-det bench classification``.

python tools/benchmark_classification.py --rounds 9 --compile
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("classification.studies.commands:bench")
