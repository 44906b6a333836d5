"""Data sets of image files: listing, preprocessing, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classification import train
from classification.data import build_data, check_images
from kd_det.common.images import UnreadableImageError
from tests.classification.data.layouts import CUB_CLASSES, config, picture, write_cub, write_folders


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


def folder_config(root: Path, *overrides: object):
    return config("DATA.NAME", "folder", "DATA.ROOT", root, "DATA.IMAGE_SIZE", 24, *overrides)


def squashed(image, size, side):
    return evaluated(image.resize((side, side), Image.Resampling.BILINEAR), size, side)


def evaluated(image: Image.Image, size: int, short_side: int) -> torch.Tensor:
    """The shorter side resized and the centre cut, in Pillow; ImageNet's normalisation."""
    factor = short_side / min(image.size)
    image = image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    pixels = np.array(image.crop((left, top, left + size, top + size))) / 255
    normalised = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return torch.from_numpy(normalised).permute(2, 0, 1).float()


@pytest.mark.parametrize(("size", "short_side"), [(224, 256), (112, 128)])
def test_folders_are_listed_in_order_and_cut_at_the_centre(folders, size, short_side):
    data = build_data(folder_config(folders, "DATA.IMAGE_SIZE", size), "cpu")
    assert data.class_names == ("ant", "bee", "cow")
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    validation = list(data.val)
    assert torch.cat([batch.labels for batch in validation]).tolist() == [0] * 3 + [1] * 3 + [2] * 3
    for seed, image in enumerate(torch.cat([batch.images for batch in validation]), start=15):
        torch.testing.assert_close(image, evaluated(picture(seed), size, short_side), rtol=0, atol=1e-5)


def test_cub_follows_its_three_files(tmp_path):
    write_cub(tmp_path)
    cfg = config("DATA.NAME", "cub200", "DATA.ROOT", tmp_path, "DATA.IMAGE_SIZE", 24, "DATA.BATCH_SIZE", 4)
    data = build_data(cfg, "cpu")
    assert data.class_names == CUB_CLASSES
    assert data.train.labels.tolist() == [1, 0, 1, 0]  # images 1, 2, 5, 6
    (batch,) = data.val
    assert batch.labels.tolist() == [0, 1]  # images 3, 4
    saved = [Image.open(next(tmp_path.rglob(f"Bird_{image:04d}.jpg"))) for image in (3, 4)]
    for image, its_picture in zip(batch.images, saved, strict=True):
        torch.testing.assert_close(image, squashed(its_picture, 24, 27), rtol=0, atol=1e-5)


def test_cub_is_cropped_without_another_scale(tmp_path):
    """Every training image is a window of the squashed picture, mirrored or not."""
    write_cub(tmp_path)
    cfg = config("DATA.NAME", "cub200", "DATA.ROOT", tmp_path, "DATA.IMAGE_SIZE", 24, "DATA.BATCH_SIZE", 4)
    data = build_data(cfg, "cpu")
    sides = set()
    for epoch in range(8):
        (batch,) = data.train.epoch(epoch)
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            path = next(tmp_path.rglob(f"Bird_{(1, 2, 5, 6)[index]:04d}.jpg"))
            resized = Image.open(path).resize((27, 27), Image.Resampling.BILINEAR)
            pixels = np.array(resized) / 255
            whole = torch.from_numpy((pixels - data.mean) / data.std).permute(2, 0, 1).float()
            for mirrored, view in ((False, image), (True, image.flip(-1))):
                windows = whole.unfold(1, 24, 1).unfold(2, 24, 1).permute(1, 2, 0, 3, 4)
                if (windows - view).abs().flatten(2).amax(-1).min() < 1e-5:
                    sides.add(mirrored)
                    break
            else:
                pytest.fail(f"image {index} is no window of its picture")
    assert sides == {False, True}


@pytest.mark.parametrize("auto_augment", [False, True])
def test_workers_change_nothing(folders, auto_augment):
    cfg = folder_config(folders, "DATA.AUTO_AUGMENT", auto_augment)
    alone = list(build_data(cfg, "cpu").train.epoch(1))
    cfg.DATA.WORKERS = 2
    before = torch.get_rng_state()
    data = build_data(cfg, "cpu")
    by_workers = list(data.train.epoch(1))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(alone, by_workers, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
    (tail,) = data.train.epoch(1, start=1)
    assert torch.equal(tail.images, alone[1].images)


def test_an_image_looks_the_same_in_whatever_batch(folders):
    """Its augmentation depends on seed, epoch and index alone."""
    small, large = (build_data(folder_config(folders, "DATA.BATCH_SIZE", size), "cpu") for size in (3, 15))
    (everything,) = large.train.epoch(4)
    by_index = {int(index): image for image, _, index in zip(*everything[:3], strict=True)}
    for batch in small.train.epoch(4):
        for image, _, index in zip(*batch[:3], strict=True):
            assert torch.equal(image, by_index[int(index)])


def test_grey_and_palette_images_become_rgb(folders):
    for name, mode in (("0", "L"), ("1", "P"), ("2", "RGBA")):
        picture(1).convert(mode).save(folders / "val" / "ant" / f"{name}.png")
    batch = next(iter(build_data(folder_config(folders), "cpu").val))
    assert batch.images.shape[1] == 3


@pytest.fixture
def damaged(folders):
    """Two damaged images, one in each split: half a file, and a file that is not an image."""
    half = folders / "train" / "bee" / "3.png"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    text = folders / "val" / "cow" / "0.png"
    text.write_text("not an image")
    return half, text


@pytest.mark.parametrize("workers", [0, 2])
def test_the_scan_names_all_unreadable_images(folders, damaged, workers):
    cfg = folder_config(folders, "DATA.WORKERS", workers)
    found = check_images(cfg)
    assert len(found) == 2
    for line, path in zip(found, damaged, strict=True):
        name, reason = line.split(": ", 1)
        assert name == str(path) and reason


def test_the_scan_of_intact_images_finds_nothing(any_config):
    assert check_images(any_config) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_in_training(folders, damaged, workers):
    data = build_data(folder_config(folders, "DATA.WORKERS", workers), "cpu")
    with pytest.raises(UnreadableImageError, match=r"^cannot read the image '.*bee/3\.png'"):
        list(data.train.epoch(0))
    with pytest.raises(UnreadableImageError, match=r"cow/0\.png"):
        list(data.val)


def test_gifs_are_read_and_files_left_out_are_counted(folders, caplog):
    picture(99).save(folders / "train" / "ant" / "extra.GIF")
    for name in ("notes.txt", "more.txt", "phone.heic"):
        (folders / "train" / "bee" / name).write_bytes(b"")
    data = build_data(folder_config(folders), "cpu")
    assert data.train.samples == 16 and check_images(folder_config(folders)) == []
    assert "train: 3 files without an image's suffix are left out (2 .txt, 1 .heic)" in caplog.text


def test_16_bit_images_are_not_white(folders):
    grey = np.array(picture(1).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folders / "val" / "ant" / "0.png")
    Image.fromarray(grey).save(folders / "val" / "ant" / "1.png")
    images = next(iter(build_data(folder_config(folders), "cpu").val)).images
    assert torch.equal(images[0], images[1]) and images[0].std() > 0.1


@pytest.mark.parametrize("workers", [0, 1])
def test_the_command_ends_with_one_line_that_names_the_image(folders, damaged, tmp_path, capsys, workers):
    overrides = [
        "DATA.NAME", "folder", "DATA.ROOT", str(folders), "DATA.IMAGE_SIZE", "32", "DATA.BATCH_SIZE", "4",
        "DATA.WORKERS", str(workers), "DISTILLER", "none", "STUDENT.NAME", "resnet8", "SOLVER.EPOCHS", "1",
        "OUTPUT_DIR", str(tmp_path / "run"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as raised:
        train.main(overrides)
    assert raised.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: cannot read the image '") and "bee/3.png'" in line
    assert line.endswith("Replace or remove it. --check-data lists all unreadable images.")


def test_decompression_bombs_are_named(folders, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UnreadableImageError, match=r"ant/0\.png'.*1920 pixels.*Make it smaller, or cut it into tiles"):
        next(iter(build_data(folder_config(folders), "cpu").val))
