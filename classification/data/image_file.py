"""Reading one image file."""

from __future__ import annotations

from PIL import Image


class UnreadableImageError(OSError):
    """An image file is missing, damaged, or no image; the message names it."""


def read_image(path: str) -> Image.Image:
    """The image as RGB, decoded to the end.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise nearly anything for damaged bytes
        raise UnreadableImageError(f"cannot read the image {path!r}: {error}. --check-data lists all such.") from error
