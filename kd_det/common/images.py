"""Reads image files completely, as 8 bits per channel. An error is one line that names the file."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from kd_det.common.errors import SetupError

logger = logging.getLogger(__name__)

# The formats that Pillow decodes by itself. Pillow ignores the file's suffix, and for EPS it would start Ghostscript.
FORMATS = (
    "JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "MPO", "JPEG2000", "AVIF", "TGA", "PCX", "SGI", "ICO", "DIB",
)  # fmt: skip
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".avif", ".tga", ".pcx", ".sgi", ".ico",
)  # fmt: skip
SIZED = ("JPEG", "PNG", "WEBP", "BMP")  # the header of these has the size that the decoded image has
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}  # modes that Pillow converts to only one other mode

# Pillow's own warning about a large image does not name the file; ``_note_if_large`` does.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImageError(SetupError):
    """An image file is missing, damaged, not an image, or its pixels do not fit in 8 bits. The message names the file.

    A data loader's worker passes an error on as text: "Caught ... Original Traceback ...", with the message at the end.
    An error made from such text keeps the message alone.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.rsplit(f"{type(self).__name__}: ", 1)[-1].split()))


def read_image(path: str, mode: str = "RGB", *, upright: bool) -> Image.Image:
    """An image in ``mode``, completely decoded; the first frame of an animation.

    Pillow converts pixels of 8 bits: palettes and grey become colour, transparency is dropped. Of 16-bit grey the upper
    8 bits are taken, as Pillow does for colour. 32-bit grey, integer or floating point, must have values from 0 to 255.

    Args:
        path: the file.
        mode: Pillow's name of the mode.
        upright: turn the image as its EXIF orientation says. TIFF files are turned in any case, by Pillow.

    Raises:
        UnreadableImageError: the file does not exist, it cannot be decoded, it is larger than Pillow allows (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``), or its pixels have values that 8 bits cannot hold.
    """
    try:
        if not os.path.isfile(path):
            raise FileNotFoundError("there is no such file")
        with Image.open(path, formats=_formats()) as file:
            _note_if_large(path, *file.size)
            file.load()
            turn = TURNS.get(_orientation(file)) if upright else None
            image = _eight_bits(file)
            return (image if turn is None else image.transpose(turn)).convert(mode)
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"cannot read the image {path!r}: {_first_line(error)} Make it smaller, or cut it into tiles."
        ) from error
    except Exception as error:  # damaged bytes make decoders raise nearly any error
        raise UnreadableImageError(
            f"cannot read the image {path!r}: {_first_line(error).rstrip('.')}. Replace or remove it."
        ) from error


def image_size(path: str) -> tuple[int, int]:
    """Height and width, in pixels, of the image that ``read_image`` with ``upright`` gives. Most files are not decoded.

    Raises:
        UnreadableImageError: see ``read_image``; but a file whose end is damaged is not noticed.
    """
    with contextlib.suppress(Exception), Image.open(path, formats=_formats()) as file:
        if file.format in SIZED:
            width, height = file.size
            return (width, height) if _orientation(file) in SIDEWAYS else (height, width)
    width, height = read_image(path, upright=True).size
    return height, width


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@lru_cache(maxsize=1000)  # each file once
def _note_if_large(path: str, width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        millions = width * height / 1e6
        logger.warning("%s has %dx%d pixels, %.0f million: reading it takes long", path, width, height, millions)


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # damaged EXIF data make Pillow raise nearly any error
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # "I": before Pillow 10.3
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return Image.fromarray(_bytes(np.asarray(image)))
    return image.convert(PREMULTIPLIED[image.mode]) if image.mode in PREMULTIPLIED else image


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """32-bit pixels, unchanged. Scaling other ranges would be a guess, and a different one for each image."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 255):
        raise ValueError(f"its pixels have values from {low:g} to {high:g}; save it with 8 or 16 bits a channel")
    if 0 < high <= 1 and pixels.dtype.kind == "f":
        raise ValueError(f"its pixels are fractions up to {high:g}, all black as bytes; save it with 8 or 16 bits")
    rounded: np.ndarray = np.rint(pixels).astype(np.uint8)
    return rounded


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
