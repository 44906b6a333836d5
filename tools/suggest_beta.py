#!/usr/bin/env python
"""Measures a teacher's confidence and suggests DKD's beta for it: ``kd-det suggest-beta``.

python tools/suggest_beta.py --config-file digits/pairs/resnet20_resnet8.yaml
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.studies.commands:suggest_beta")
