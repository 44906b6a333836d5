#!/usr/bin/env python
"""Compares methods on the digits scenes; ``--demo`` is ``kd-det demo``.

python tools/run_digits_det.py --seeds 3 --methods dkd reviewkd --schedule long
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.studies.commands:benchmark_digits")
