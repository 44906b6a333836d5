"""Reading one image file."""

from __future__ import annotations

from PIL import Image

from kd_det.common import images
from kd_det.common.images import UnreadableImageError


def read_image(path: str) -> Image.Image:
    """The image as RGB, decoded to the end, as it is stored: see ``kd_det.common.images.read_image``.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    try:
        return images.read_image(path, upright=False)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{error} --check-data lists all such.") from error.__cause__
