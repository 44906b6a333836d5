#!/usr/bin/env python
"""Reports on data sets in COCO format: ``kd-det check-data``.

python tools/check_dataset.py --dataset mine=annotations.json,images --sizes
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.engine.commands:check_data")
