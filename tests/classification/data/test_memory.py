"""The batched crop and mirroring against one image at a time, and the two data sets that are kept in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from classification.data import build_data, small_images, transforms
from classification.data.memory_source import PADDING, MemorySource, PaddedImages
from classification.data.seeding import Purpose, generator
from classification.data.transforms import Normalization
from kd_det.common.errors import SetupError
from tests.classification.data.layouts import config

CPU = torch.device("cpu")


def noise(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (count, 3, 32, 32), dtype=np.uint8))


def by_pillow(image: torch.Tensor, top: int, left: int, mirrored: bool) -> torch.Tensor:
    """RandomCrop(32, padding=4) and a horizontal flip, in Pillow."""
    padded = ImageOps.expand(Image.fromarray(image.permute(1, 2, 0).numpy()), border=4, fill=0)
    crop = padded.crop((left, top, left + 32, top + 32))
    if mirrored:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_crop_is_pillows(layout, mirrored):
    images = noise(81)
    padded = PaddedImages(images, CPU, layout, mirror=mirrored)
    places = [(top, left) for top in range(9) for left in range(9)]
    top, left = (torch.tensor(values) for values in zip(*places, strict=True))
    column = 32 + 3 * PADDING - left if mirrored else left
    crops = padded.crops(torch.arange(81), top, column)
    assert crops.is_contiguous(memory_format=layout)
    for crop, image, (row, begin) in zip(crops, images, places, strict=True):
        assert torch.equal(crop, by_pillow(image, row, begin, mirrored))


@pytest.mark.parametrize("mirror", [False, True])
def test_drawn_crops_cover_all_places_evenly(mirror):
    padded = PaddedImages(
        noise(1).expand(20_000, -1, -1, -1)[:, :, :1, :32], CPU, torch.contiguous_format, mirror=mirror
    )
    top, left = padded.draw(generator(Purpose.CROPS, 0, 0))
    unmirrored = list(range(9))
    columns = unmirrored + [44 - column for column in unmirrored] if mirror else unmirrored
    counts = torch.stack([((top == row) & (left == column)).sum() for row in range(9) for column in columns])
    assert counts.sum() == 20_000
    expected = 20_000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 4 * (
        2 * len(counts)
    ) ** 0.5  # chi squared, 4 sigma


def test_an_epoch_beside_a_loop_over_images():
    images, labels = noise(50), torch.arange(50) % 7
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    normalize = Normalization(mean, std, 32, CPU, torch.contiguous_format)
    source = MemorySource(PaddedImages(images, CPU, torch.contiguous_format, mirror=True), labels, normalize, seed=5)
    batches = [torch.tensor([3, 41, 0, 7]), torch.tensor([49, 12])]
    top, left = source.images.draw(generator(Purpose.CROPS, 5, 2))
    given = list(source.augmented(2, batches))
    assert [len(batch.labels) for batch in given] == [4, 2]
    for batch, indices in zip(given, batches, strict=True):
        assert torch.equal(batch.indices, indices) and torch.equal(batch.labels, labels[indices])
        for image, index in zip(batch.images, indices.tolist(), strict=True):
            column = int(left[index])
            mirrored = column > 8
            crop = by_pillow(images[index], int(top[index]), 44 - column if mirrored else column, mirrored)
            # The black border is normalised with the rest, as after RandomCrop and ToTensor.
            expected = (crop / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-6)


def test_evaluation_shows_the_images_as_they_are():
    images = noise(5)
    normalize = Normalization((0.0,) * 3, (1.0,) * 3, 32, CPU, torch.contiguous_format)
    source = MemorySource(
        PaddedImages(images, CPU, torch.contiguous_format, mirror=True), torch.arange(5), normalize, 0
    )
    (batch,) = source.plain([torch.tensor([4, 2])])
    torch.testing.assert_close(batch.images, images[[4, 2]] / 255)


def test_digits_are_scikit_learns_scans():
    content = small_images.read_digits()
    assert (len(content.train.labels), len(content.val.labels)) == (1437, 360)
    assert content.class_names == tuple("0123456789") and not content.mirror
    for split in content[:2]:
        assert split.images.shape[1:] == (3, 32, 32) and split.images.dtype == torch.uint8
    share = torch.bincount(content.val.labels) / torch.from_numpy(load_digits().target).bincount()
    assert (share - 0.2).abs().max() < 0.01
    scans = torch.from_numpy(np.stack([by_pillow_enlarged(scan) for scan in load_digits().images])).flatten(1)
    images = torch.cat([content.train.images, content.val.images])
    assert (images == images[:, :1]).all()
    nearest = torch.cdist(images[:, 0].flatten(1).float(), scans).argmin(1)
    assert len(nearest.unique()) == 1797
    assert (images[:, 0].flatten(1) - scans[nearest]).abs().max() < 0.51
    labels = torch.cat([content.train.labels, content.val.labels])
    assert torch.equal(torch.from_numpy(load_digits().target)[nearest], labels)


def by_pillow_enlarged(scan: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray((scan * 255 / 16).astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR))


def test_digits_mean_and_std_are_those_of_the_training_split():
    pixels = small_images.read_digits().train.images.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(small_images.DIGITS_MEAN, abs=5e-5)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(small_images.DIGITS_STD, abs=5e-5)


def test_digits_are_never_mirrored():
    content = small_images.read_digits()
    data = build_data(config("DATA.BATCH_SIZE", 1437), "cpu")
    (batch,) = data.train.epoch(0)
    mean, std = data.mean[0], data.std[0]
    images = ((batch.images[:, 0] * std + mean) * 255).round().to(torch.uint8)
    padded = torch.nn.functional.pad(content.train.images[:, 0], (4, 4, 4, 4))
    for image, index in zip(images, batch.indices.tolist(), strict=True):
        windows = padded[index].unfold(0, 32, 1).unfold(1, 32, 1)
        assert (windows == image).all(-1).all(-1).any()


def test_cifar_is_the_files_content(cifar_root):
    content = small_images.read_cifar100(str(cifar_root))
    files = small_images.CIFAR100(str(cifar_root), train=True), small_images.CIFAR100(str(cifar_root), train=False)
    for split, file in zip(content[:2], files, strict=True):
        assert split.labels.tolist() == file.targets
        for image, (picture, _) in zip(split.images, file, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture))
    assert len(content.class_names) == 100 and content.mirror
    data = build_data(config("DATA.NAME", "cifar100", "DATA.ROOT", cifar_root), "cpu")
    assert (data.mean, data.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    assert (data.num_classes, data.train.samples, data.val.samples) == (100, 21, 7)


def test_cifar_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(small_images.CIFAR100, "url", "file:///nowhere/cifar-100-python.tar.gz")
    with pytest.raises(SetupError, match=r"DATA\.ROOT .*cifar-100-python.*cannot be downloaded.*Download"):
        build_data(config("DATA.NAME", "cifar100", "DATA.ROOT", tmp_path / "new"), "cpu")


def test_auto_augment_changes_images_after_the_crop():
    cfg = config("DATA.BATCH_SIZE", 400)
    plain = next(build_data(cfg, "cpu").train.epoch(0))
    cfg.DATA.AUTO_AUGMENT = True
    augmented = next(build_data(cfg, "cpu").train.epoch(0))
    assert torch.equal(plain.indices, augmented.indices)
    same = (plain.images == augmented.images).flatten(1).all(1)
    assert 0 < same.sum() < 200  # some of the policy's operations are applied by chance only


@pytest.mark.parametrize(
    "policy", [transforms.auto_augment_small(), transforms.area_crop_transform(32, auto_augment=True)]
)
def test_what_auto_augment_uncovers_is_grey(policy):
    """As in the policy's usual implementation: an image of one level gets that of 128 beside it, never black."""
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    levels = []
    for seed in range(150):
        torch.manual_seed(seed)
        levels.append(frozenset(policy(picture if isinstance(policy, v2.Compose) else image).flatten().tolist()))
    assert levels.count(frozenset({128, 200})) > 3 and frozenset({0, 200}) not in levels
