#!/usr/bin/env python
"""Compares the logit correlations of two students with their teacher's.

python tools/plot_correlation.py digits/kd_resnet20_resnet8 digits/dkd_resnet20_resnet8
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("classification.studies.analysis_commands:correlation")
