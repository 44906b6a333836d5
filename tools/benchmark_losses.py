#!/usr/bin/env python
"""Times the logit losses against their plain formulas: ``kd-det bench losses``.

python tools/benchmark_losses.py --json losses.json
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.studies.loss_speed:main")
