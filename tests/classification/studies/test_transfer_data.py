"""Images of other domains for a student: the right pixels, labels and split, at its size and normalisation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import STL10

from classification.config import load_config
from classification.data.small_images import read_digits
from classification.studies.linear_probe import probe_run
from classification.studies.transfer_data import read_domain, transfer_data
from kd_det.common.errors import SetupError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
WNIDS = ("n01443537", "n01629819", "n01641577")


@pytest.fixture
def run():
    """The part of a run that the readers use."""
    cfg = load_config("", ["DATA.EVAL_BATCH_SIZE", "4", "DATA.WORKERS", "0"])
    data = SimpleNamespace(mean=MEAN, std=STD, image_size=32)
    return SimpleNamespace(name="run", cfg=cfg, data=data, device=torch.device("cpu"), result={"last_top1": 0.0})


def pixels(batches) -> tuple[np.ndarray, list[int]]:
    """All images, back to (N, 3, H, W) from 0 to 255, and their labels."""
    parts = list(batches)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = torch.cat([batch.images for batch in parts]) * std + mean
    return 255 * images.numpy(), torch.cat([batch.labels for batch in parts]).tolist()


def test_digits_rotated_and_inverted(run):
    digits = read_digits()
    found = transfer_data(read_domain("digits_rotated_inverted", ""), run)
    for split, own in zip(found, digits[:2], strict=True):
        images, labels = pixels(split)
        assert labels == own.labels.tolist()
        for image, scan in zip(images[:5], own.images.numpy(), strict=False):
            turned = np.stack([np.rot90(channel) for channel in scan])
            np.testing.assert_allclose(image, 255 - turned.astype(np.float64), atol=1e-3)


def write_stl10(root: Path, monkeypatch) -> None:
    """Three training and two test images of one colour each, in STL-10's binary format."""
    folder = root / STL10.base_folder
    folder.mkdir()
    for split, colours, labels in (("train", (10, 20, 30), (1, 10, 4)), ("test", (40, 50), (2, 9))):
        images = np.concatenate([np.full((1, 3, 96, 96), colour, np.uint8) for colour in colours])
        images[0, :, :, 48:] = 200  # stored column by column: the lower half
        images.tofile(folder / f"{split}_X.bin")
        np.array(labels, np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {number}" for number in range(10)))
    for attribute in ("train_list", "test_list"):
        files = [[name, None] for name, _ in getattr(STL10, attribute) if not name.startswith("unlabeled")]
        monkeypatch.setattr(STL10, attribute, files)


def test_stl10(run, tmp_path, monkeypatch):
    write_stl10(tmp_path, monkeypatch)
    train, test = transfer_data(read_domain("stl10", str(tmp_path)), run)
    images, labels = pixels(train)
    assert images.shape == (3, 3, 32, 32) and labels == [0, 9, 3]
    np.testing.assert_allclose(images[1:], np.broadcast_to([[[[20]]], [[[30]]]], (2, 3, 32, 32)), atol=1e-3)
    np.testing.assert_allclose(images[0, :, :15], 10, atol=1e-3)
    np.testing.assert_allclose(images[0, :, 17:], 200, atol=1e-3)
    assert pixels(test)[1] == [1, 8]


def test_stl10_absent(tmp_path):
    with pytest.raises(SetupError, match=r"--data-root .* has no intact stl10_binary. Download http.*stl10_binary"):
        read_domain("stl10", str(tmp_path))


def write_tiny_imagenet(root: Path) -> Path:
    """Two training and one validation image of each of three classes, of one colour each, as published."""
    folder = root / "tiny-imagenet-200"
    lines = []
    for label, wnid in enumerate(WNIDS):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(2):
            save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", 50 * label + 10 * number)
        save(folder / "val" / "images" / f"val_{label}.JPEG", 255 - 50 * label)
        lines.append(f"val_{label}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    return folder


def save(path: Path, grey: int) -> None:
    """Some published images have one channel; black ones here have, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (grey,) * 3).convert("RGB" if grey else "L").save(path, quality=100)


def test_tiny_imagenet(run, tmp_path):
    write_tiny_imagenet(tmp_path)
    train, test = transfer_data(read_domain("tiny_imagenet", str(tmp_path)), run)
    images, labels = pixels(train)
    assert labels == [0, 0, 1, 1, 2, 2]
    assert images.shape == (6, 3, 32, 32)
    np.testing.assert_allclose(images[:, 0, 5, 5], [0, 10, 50, 60, 100, 110], atol=1.5)
    images, labels = pixels(test)
    assert labels == [2, 1, 0]
    np.testing.assert_allclose(images[:, 0, 5, 5], [155, 205, 255], atol=1.5)


@pytest.mark.parametrize("lost", ["train", "val/val_annotations.txt"])
def test_tiny_imagenet_incomplete(tmp_path, lost):
    path = write_tiny_imagenet(tmp_path) / lost
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match=rf"--data-root .*{lost}.*val_annotations\.txt.*tiny-imagenet-200\.zip"):
        read_domain("tiny_imagenet", str(tmp_path))


@pytest.mark.parametrize(
    "line", ["val_9.JPEG\tn99999999\t0\t0\t1\t1", "val_9.JPEG", "val_0.JPEG\tn01443537\t0\t0\t1\t1"]
)
def test_tiny_imagenet_bad_annotation(tmp_path, line):
    with open(write_tiny_imagenet(tmp_path) / "val" / "val_annotations.txt", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(SetupError, match=r"val_annotations\.txt, line 4"):
        read_domain("tiny_imagenet", str(tmp_path))


def test_empty_class_and_empty_annotations(tmp_path):
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(SetupError, match=r"val_annotations\.txt is empty"):
        read_domain("tiny_imagenet", str(tmp_path))
    (folder / "train" / "n00000001").mkdir()
    with pytest.raises(SetupError, match="n00000001"):
        read_domain("tiny_imagenet", str(tmp_path))


def test_unreadable_image_is_named(run, tmp_path):
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val" / "images" / "val_1.JPEG").write_bytes(b"no picture")
    answer = SimpleNamespace(pooled=torch.zeros(1, 3), logits=torch.zeros(1, 3))
    run.student = lambda images, return_features: answer
    with pytest.raises(SetupError, match=r"tiny_imagenet: .*val_1\.JPEG"):
        probe_run(run, {"tiny_imagenet": read_domain("tiny_imagenet", str(tmp_path))})
