#!/usr/bin/env python
"""t-SNE of two students' features, side by side.

python tools/plot_tsne.py digits/vanilla_resnet8 digits/dkd_resnet20_resnet8
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("classification.studies.analysis_commands:tsne")
