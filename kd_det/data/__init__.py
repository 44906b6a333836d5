"""Data sets: their checks, their reading, and the digits scenes that kd_det generates.

Importing this package registers the digits scenes with Detectron2's catalogues. They are generated when they are first
loaded, in the folder that ``DETECTRON2_DATASETS`` names ("datasets" by default, as in Detectron2).
"""

import os

from kd_det.data.digits_scenes import DigitsDetSettings, make_digits_det, register_digits_det

__all__ = ["DigitsDetSettings", "make_digits_det", "register_digits_det"]

register_digits_det(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
