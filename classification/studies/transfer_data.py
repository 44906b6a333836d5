"""Data sets of other domains, prepared for a run's student: at its image size, normalised as its own data."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.datasets import STL10, ImageFolder
from torchvision.transforms import v2

from classification.data.file_source import FileSource
from classification.data.image_folders import FileData, ImagesOnDisk
from classification.data.loaders import EvalLoader, Source
from classification.data.memory_source import MemorySource, PaddedImages
from classification.data.small_images import ImagesInMemory, read_digits
from classification.data.transforms import Normalization
from classification.studies.runs import FinishedRun
from kd_det.common.errors import SetupError

TINY_IMAGENET = "tiny-imagenet-200"
TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
LAYOUT = "train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"
RESIZED_AT_A_TIME = 1000


class TransferData(NamedTuple):
    """Both published splits, without augmentation."""

    train: EvalLoader
    test: EvalLoader


class Splits(NamedTuple):
    """Both splits of a data set in memory."""

    train: ImagesInMemory  # images of any size
    test: ImagesInMemory


def read_domain(name: str, root: str) -> Splits | FileData:
    """Reads a data set.

    Args:
        name: one of ``DOMAINS``.
        root: the folder with stl10_binary and tiny-imagenet-200.

    Raises:
        SetupError: the data set is missing or inconsistent.
    """
    return DOMAINS[name](os.path.expanduser(root))


def transfer_data(content: Splits | FileData, run: FinishedRun) -> TransferData:
    """The result of ``read_domain``, prepared for the student of ``run``."""
    sources: list[Source]
    if isinstance(content, FileData):
        sources = [_files(split, run) for split in (content.train, content.val)]
    else:
        sources = [_memory(split, run) for split in content]
    return TransferData(*(EvalLoader(source, run.cfg.DATA.EVAL_BATCH_SIZE) for source in sources))


def read_digits_rotated_inverted(root: str) -> Splits:
    """The embedded digits as another domain: rotated 90° counterclockwise, black on white. ``root`` is not used."""
    content = read_digits()
    return Splits(
        *(ImagesInMemory(255 - split.images.rot90(1, (2, 3)), split.labels) for split in (content.train, content.val))
    )


def read_stl10(root: str) -> Splits:
    """STL-10 by torchvision's reader: 5,000 labelled images for training and 8,000 for testing, 96 × 96.

    Raises:
        SetupError: it is missing or damaged.
    """
    try:
        train, test = (STL10(root, split=split) for split in ("train", "test"))
    except RuntimeError as error:  # torchvision raises it for missing files and wrong checksums
        raise SetupError(
            f"--data-root {root!r} has no intact {STL10.base_folder}. Download {STL10.url} and unpack it there."
        ) from error
    return Splits(*(ImagesInMemory(torch.from_numpy(split.data), _int64(split.labels)) for split in (train, test)))


def read_tiny_imagenet(root: str) -> FileData:
    """Tiny-ImageNet as published. The test split is its validation split, because its test labels are not public.

    Raises:
        SetupError: a file or folder is missing, or a line of val_annotations.txt repeats an image or has an unknown
            class.
    """
    folder = os.path.join(root, TINY_IMAGENET)
    annotations = os.path.join(folder, "val", "val_annotations.txt")
    for path in (os.path.join(folder, "train"), annotations):
        if not os.path.exists(path):
            raise SetupError(
                f"--data-root {root!r}: no {path!r}. Expected in {folder!r}: {LAYOUT}, as in {TINY_IMAGENET_URL}."
            )
    try:
        train = ImageFolder(os.path.join(folder, "train"))
    except FileNotFoundError as error:
        raise SetupError(f"--data-root {root!r}: expected in {folder!r}: {LAYOUT}. {error}") from error
    return FileData(
        ImagesOnDisk([path for path, _ in train.samples], torch.tensor(train.targets)),
        _read_annotations(annotations, train.class_to_idx),
        tuple(train.classes),
    )


def _read_annotations(path: str, classes: dict[str, int]) -> ImagesOnDisk:
    """Reads lines of image, WNID and a box, separated by tabs; the box is not used."""
    images = os.path.join(os.path.dirname(path), "images")
    labels: dict[str, int] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            name, _, rest = line.rstrip("\n").partition("\t")
            wnid = rest.split("\t")[0]
            if wnid not in classes or name in labels:
                raise SetupError(f"{path}, line {number}: {line.strip()!r} is not a new image and a class of train/.")
            labels[name] = classes[wnid]
    if not labels:
        raise SetupError(f"{path} is empty; unpack {TINY_IMAGENET_URL} again.")
    return ImagesOnDisk([os.path.join(images, name) for name in labels], torch.tensor(list(labels.values())))


def _files(split: ImagesOnDisk, run: FinishedRun) -> Source:
    size = run.data.image_size
    prepare = v2.Compose([v2.Resize((size, size), antialias=True), v2.PILToTensor()])
    return FileSource(
        split.paths,
        split.labels,
        augment=prepare,
        prepare=prepare,
        normalize=_normalization(run),
        seed=0,
        workers=run.cfg.DATA.WORKERS,
        device=run.device,
    )


def _memory(split: ImagesInMemory, run: FinishedRun) -> Source:
    images = PaddedImages(
        _resized(split.images, run.data.image_size), run.device, torch.contiguous_format, mirror=False
    )
    return MemorySource(images, split.labels, _normalization(run), seed=0)


def _resized(images: Tensor, size: int) -> Tensor:
    """Resizes uint8 (N, 3, H, W) to (N, 3, size, size) bilinearly, in parts whose float copies fit into memory."""
    if images.shape[-2:] == (size, size):
        return images
    parts = torch.split(images, RESIZED_AT_A_TIME)
    return torch.cat([v2.functional.resize(part, [size, size], antialias=True) for part in parts])


def _normalization(run: FinishedRun) -> Normalization:
    data = run.data
    return Normalization(data.mean, data.std, data.image_size, run.device, torch.contiguous_format)


def _int64(labels: object) -> Tensor:
    return torch.as_tensor(labels).long()


# A reader takes the folder that has the data sets.
DOMAINS: dict[str, Callable[[str], Splits | FileData]] = {
    "digits_rotated_inverted": read_digits_rotated_inverted,
    "stl10": read_stl10,
    "tiny_imagenet": read_tiny_imagenet,
}
