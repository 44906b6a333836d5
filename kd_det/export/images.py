"""Real images to compare detectors on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image
from torch import Tensor

from kd_det.common.errors import SetupError
from kd_det.data.mapper import read_image


def inputs(cfg: CfgNode, paths: Sequence[str] = ()) -> Iterator[Tensor]:
    """Every image at the size of ``INPUT.MIN_SIZE_TEST`` and at half of it, as the detector of ``cfg`` takes it.

    Args:
        paths: image files; none: the two photographs that come with scikit-learn.

    Yields:
        (3, H, W) float32, values 0-255, channels as in ``INPUT.FORMAT``.

    Raises:
        SetupError: a file cannot be read.
    """
    for pixels in _read(cfg.INPUT.FORMAT, paths):
        shortest = cfg.INPUT.MIN_SIZE_TEST or min(pixels.shape[:2])
        for edge in (shortest, shortest // 2):
            resize = T.ResizeShortestEdge([edge, edge], cfg.INPUT.MAX_SIZE_TEST)
            resized = resize.get_transform(pixels).apply_image(pixels)
            yield torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)), dtype=torch.float32)


def _read(channels: str, paths: Sequence[str]) -> list[np.ndarray]:
    if not paths:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images
        return [convert_PIL_to_numpy(Image.fromarray(photograph), channels) for photograph in photographs]
    try:
        return [read_image(path, channels) for path in paths]
    except (OSError, SetupError) as error:
        raise SetupError(f"--image: {error}. Give image files.") from error
