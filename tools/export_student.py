#!/usr/bin/env python
"""Writes a trained student for use without kd_det: ``kd-det export``.

python tools/export_student.py --config-file coco/dkd_r101_r18.yaml --weights output/model_final.pth \\
    --output output/r18
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("kd_det.engine.commands:export")
