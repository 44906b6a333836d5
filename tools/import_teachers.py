#!/usr/bin/env python
"""Imports the published CIFAR-100 teachers into our format.

python tools/import_teachers.py cifar_teachers.tar --data-root datasets
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("classification.studies.commands:import_teachers")
