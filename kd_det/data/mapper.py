"""Detectron2's ``DatasetMapper`` with a reader that names the file in every error."""

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

# Formats of Detectron2's own, which it makes of RGB.
MADE_OF_RGB = ("BGR", "YUV-BT.601")


def read_image(file_name: str, format: str) -> np.ndarray:
    """An image as ``detectron2.data.detection_utils.read_image`` gives it; 16-bit files are scaled to 8 bits.

    Args:
        file_name: a path, or what else Detectron2's ``PathManager`` takes.
        format: as of ``INPUT.FORMAT``.

    Returns:
        (H, W, C) uint8, turned as the EXIF orientation says; float for YUV-BT.601.

    Raises:
        UnreadableImageError: see ``kd_det.common.images.read_image``.
    """
    path = PathManager.get_local_path(file_name)
    image = images.read_image(path, "RGB" if format in MADE_OF_RGB else format, upright=True)
    return convert_PIL_to_numpy(image, format)


class NamingDatasetMapper(DatasetMapper):
    """``DatasetMapper`` whose errors about images are user errors that name the file; built and called as that one.

    Raises:
        UnreadableImageError: an image cannot be read, or has another size than the data set says.
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
        record["height"], record["width"] = pixels.shape[:2]  # the same, but never 480.0
        regions = record.pop("sem_seg_file_name", None)
        seen = T.AugInput(pixels, sem_seg=None if regions is None else read_image(regions, "L").squeeze(2))
        transforms = self.augmentations(seen)
        shape = seen.image.shape[:2]
        record["image"] = torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        if seen.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(seen.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            transform_proposals(record, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, shape)
        return record
