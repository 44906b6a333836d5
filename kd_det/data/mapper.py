"""Detectron2's ``DatasetMapper`` with an image reader whose errors name the file."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    SizeMismatchError,
    check_image_size,
    convert_PIL_to_numpy,
    transform_proposals,
)
from detectron2.utils.file_io import PathManager

from kd_det.common import images
from kd_det.common.images import UnreadableImageError

# Detectron2's own formats, which it converts from RGB.
MADE_OF_RGB = ("BGR", "YUV-BT.601")


def read_image(file_name: str, format: str) -> np.ndarray:
    """As ``detectron2.data.detection_utils.read_image``, but files of 16 bits are scaled to 8 bits.

    Args:
        file_name: a path or URL that Detectron2's ``PathManager`` can open.
        format: a value of ``INPUT.FORMAT``.

    Returns:
        (H, W, C) uint8, turned as the EXIF orientation says; float for YUV-BT.601.

    Raises:
        UnreadableImageError: see ``kd_det.common.images.read_image``.
    """
    path = PathManager.get_local_path(file_name)
    image = images.read_image(path, "RGB" if format in MADE_OF_RGB else format, upright=True)
    return convert_PIL_to_numpy(image, format)


class NamingDatasetMapper(DatasetMapper):
    """``DatasetMapper`` that raises user errors with the file's name for unreadable images.

    Raises:
        UnreadableImageError: an image cannot be read, or its size is not the one in the data set.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        record = copy.deepcopy(dataset_dict)
        pixels = read_image(record["file_name"], self.image_format)
        try:
            check_image_size(record, pixels)
        except SizeMismatchError as error:
            raise UnreadableImageError(
                f"the image {record['file_name']!r} is {pixels.shape[1]}x{pixels.shape[0]}, its annotations say "
                f"{record['width']}x{record['height']}. kd-det check-data --sizes lists all such."
            ) from error
        record["height"], record["width"] = pixels.shape[:2]  # equal values, but always integers
        regions = record.pop("sem_seg_file_name", None)
        seen = T.AugInput(pixels, sem_seg=None if regions is None else read_image(regions, "L").squeeze(2))
        transforms = self.augmentations(seen)
        shape = seen.image.shape[:2]
        record["image"] = torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        if seen.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(seen.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            transform_proposals(record, shape, transforms, proposal_topk=self.proposal_topk)
        self._transform_others(record, transforms, shape)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, shape)
        return record

    def _transform_others(self, record: dict[str, Any], transforms: T.TransformList, shape: tuple[int, int]) -> None:
        """For subclasses whose records have more that belongs to the image.

        Args:
            record: to be changed in place.
            transforms: what was done to the image.
            shape: height and width of the image after that.
        """
