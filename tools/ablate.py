#!/usr/bin/env python
"""Sweeps keys of a configuration over values and seeds.

python tools/ablate.py --config-file cifar100/methods/dkd.yaml digits/pairs/resnet20_resnet8.yaml \\
    --grid DKD.BETA 1.0 8.0
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("classification.studies.commands:ablate")
