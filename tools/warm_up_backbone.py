#!/usr/bin/env python
"""Warms up a detector's backbone on digit classification: ``python -m kd_det.studies.warm_up``.

python tools/warm_up_backbone.py --config-file digits_det/teacher.yaml --output output/warm_up.pth
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.studies.warm_up:main")
