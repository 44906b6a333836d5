#!/usr/bin/env python
"""Times a distilled training step against the plain student's: ``kd-det bench step``.

python tools/benchmark_step.py --all
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.studies.step_speed:main")
