"""The image reader: Detectron2's pixels for usual files, a stated meaning for others, one line for the unreadable."""

from __future__ import annotations

import logging
import os
import pickle
import sys

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image
from torch._utils import ExceptionWrapper

from kd_det.common.images import UnreadableImageError, read_image
from kd_det.data import mapper


@pytest.fixture
def picture():
    """Smooth colours, 24 x 40."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    return Image.fromarray(coarse, "RGBA").resize((40, 24), Image.Resampling.BILINEAR)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGB"), ("png", "RGBA"), ("png", "LA"), ("png", "L"),
        ("png", "P"), ("png", "1"), ("gif", "P"), ("bmp", "RGB"), ("tif", "RGB"), ("tif", "CMYK"), ("webp", "RGBA"),
        ("ppm", "RGB"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", ["BGR", "RGB", "L", "YUV-BT.601"])
def test_pixels_of_8_bits_are_detectron2s(picture, tmp_path, suffix, mode, channels):
    path = str(tmp_path / f"picture.{suffix}")
    picture.convert("RGB" if mode in ("P", "CMYK", "1") else mode).convert(mode).save(path)
    expected = detection_utils.read_image(path, channels)
    found = mapper.read_image(path, channels)
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_images_are_turned_upright_where_asked(picture, tmp_path, orientation):
    path = str(tmp_path / "turned.jpg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.convert("RGB").save(path, exif=exif)
    assert np.array_equal(mapper.read_image(path, "BGR"), detection_utils.read_image(path, "BGR"))
    assert np.array_equal(read_image(path, upright=False), Image.open(path))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("factor", [256, 257])
def test_16_bits_are_scaled(picture, tmp_path, suffix, factor):
    grey = np.array(picture.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * factor).save(tmp_path / f"deep.{suffix}")
    assert np.array_equal(read_image(str(tmp_path / f"deep.{suffix}"), "L", upright=True), grey)


def test_32_bits_are_bytes_or_refused(picture, tmp_path):
    grey, path = np.array(picture.convert("L")), str(tmp_path / "deep.tif")
    for pixels in (grey.astype(np.int32), grey.astype(np.float32)):
        Image.fromarray(pixels).save(path)
        assert np.array_equal(read_image(path, "L", upright=True), grey)
    wrong = {
        "values from 0 to 1000": np.linspace(0, 1000, 960).reshape(24, 40).astype(np.int32),
        "values from -5 to 200": np.linspace(-5, 200, 960).reshape(24, 40).astype(np.float32),
        "values from nan": np.full((24, 40), np.nan, dtype=np.float32),
        "fractions up to 1": np.linspace(0, 1, 960).reshape(24, 40).astype(np.float32),
    }
    for reason, pixels in wrong.items():
        Image.fromarray(pixels).save(path)
        with pytest.raises(UnreadableImageError, match=f"deep.tif'.*{reason}.*8 or 16 bits"):
            read_image(path, upright=True)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp", "ppm"])
def test_half_a_file_is_refused(picture, tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UnreadableImageError, match=r"^cannot read the image '.*half\..*Replace or remove it\.$"):
        read_image(str(path), upright=True)


def test_a_file_that_is_not_an_image_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("no\nimage")
    postscript = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"  # Pillow starts Ghostscript for it
    (tmp_path / "drawing.png").write_text(postscript)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    for name in ("text.png", "drawing.png", "folder.png", "pipe.png", "missing.png"):
        with pytest.raises(UnreadableImageError) as raised:
            read_image(str(tmp_path / name), upright=True)
        assert name in str(raised.value) and "\n" not in str(raised.value)


def test_decompression_bombs(tmp_path, monkeypatch, caplog, recwarn):
    path = str(tmp_path / "large.png")
    Image.new("1", (300, 200)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with caplog.at_level(logging.WARNING):
        assert read_image(path, upright=True).size == (300, 200)
    assert caplog.text.count("large.png has 300x200 pixels") == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(UnreadableImageError, match=r"large\.png'.*60000 pixels.*Make it smaller, or cut it into tiles"):
        read_image(path, upright=True)


def test_the_error_comes_out_of_a_worker_process_as_it_went_in():
    try:
        raise UnreadableImageError("cannot read the image 'a.png': why. Replace or remove it.")
    except UnreadableImageError as error:
        wrapped = pickle.loads(pickle.dumps(ExceptionWrapper(sys.exc_info(), "in DataLoader worker process 1")))
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(UnreadableImageError, match=r"^cannot read the image 'a\.png': why\. Replace or remove it\.$"):
        wrapped.reraise()
