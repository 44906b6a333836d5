#!/usr/bin/env python
"""Classification runs over seeds, from configurations to one results file and table.

python tools/run_classification.py --methods cifar100/methods/dkd.yaml --pairs digits/pairs/resnet20_resnet8.yaml
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("classification.studies.commands:run")
