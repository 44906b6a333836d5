"""Data sets, as batches on the training device."""

from classification.data.build import Data, build_data, check_images
from classification.data.labels import rank_by_confidence
from classification.data.loaders import Batch

__all__ = ["Batch", "Data", "build_data", "check_images", "rank_by_confidence"]
