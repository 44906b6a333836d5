#!/usr/bin/env python
"""What every distiller costs: step time, memory and parameters, next to its accuracy.

python tools/efficiency.py --data digits --teacher resnet20 --student resnet8
"""

from kd_det.cli import run

if __name__ == "__main__":
    run("classification.studies.analysis_commands:efficiency")
