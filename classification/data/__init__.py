"""Data sets, as batches on the training device."""

from .batch import Batch
from .build import Data, build_data
from .check import check_images
from .confidence import rank_by_confidence

__all__ = ["Batch", "Data", "build_data", "check_images", "rank_by_confidence"]
