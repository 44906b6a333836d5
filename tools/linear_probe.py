#!/usr/bin/env python
"""Trains a linear classifier on frozen student features, on other data.

python tools/linear_probe.py digits/vanilla_resnet8 digits/dkd_resnet20_resnet8
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("classification.studies.analysis_commands:linear_probe")
