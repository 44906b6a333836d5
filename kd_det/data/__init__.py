"""Data sets that the toolkit brings. Importing this package registers them with Detectron2's catalogues.

Nothing is generated or downloaded by the import; a data set is made when it is first loaded, below the folder
that ``DETECTRON2_DATASETS`` names ("datasets" by default, as Detectron2 has it).
"""

import os

from kd_det.data.digits_scenes import DigitsDetSettings, make_digits_det, register_digits_det

__all__ = ["DigitsDetSettings", "make_digits_det", "register_digits_det"]

register_digits_det(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
