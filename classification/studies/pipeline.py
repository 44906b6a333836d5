"""Images per second of the in-memory pipeline and of torchvision's usual one: crop, mirror, normalise, batch."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR100

from classification.data.loaders import TrainLoader
from classification.data.memory_source import PADDING, MemorySource, PaddedImages
from classification.data.small_images import CIFAR_MEAN, CIFAR_STD
from classification.data.transforms import Normalization


def compare_pipelines(
    rounds: int = 5,
    images: int = 50_000,
    *,
    root: str = "datasets",
    batch_size: int = 64,
    workers: int = 2,
    device: str = "cpu",
) -> dict[str, Any]:
    """Times whole training epochs of both pipelines in turn, after one epoch of each that is not timed.

    Args:
        rounds: timed epochs of each.
        images: images in an epoch, at most 50,000.
        root: the folder with cifar-100-python. If it is missing, noise in CIFAR-100's file format is read instead.
        batch_size: images in a batch.
        workers: of torchvision's DataLoader; they stay alive between epochs. The in-memory pipeline has none.
        device: of the in-memory pipeline; torchvision's batches stay on the CPU.

    Returns:
        A table's row: "data", "images", "rounds", "batch_size", "workers", "device", "threads" (torch's), the medians
        "torchvision" and "in_memory" in images/s, and "ratio", in_memory over torchvision.
    """
    with ExitStack() as stack:
        reader, folder = CIFAR100, root
        if not _is_there(root):
            reader, folder = SyntheticCIFAR100, stack.enter_context(tempfile.TemporaryDirectory())
            write_synthetic_cifar100(Path(folder), images)
        pipelines = {
            "torchvision": torchvision_pipeline(reader, folder, images, batch_size, workers),
            "in_memory": in_memory_pipeline(reader, folder, images, batch_size, torch.device(device)),
        }
        speeds = _time_in_turn(pipelines, rounds)
    return {
        "data": "CIFAR-100" if reader is CIFAR100 else "synthetic",
        "images": images,
        "rounds": rounds,
        "batch_size": batch_size,
        "workers": workers,
        "device": device,
        "threads": torch.get_num_threads(),
        **speeds,
        "ratio": speeds["in_memory"] / speeds["torchvision"],
    }


def torchvision_pipeline(
    reader: type[CIFAR100], root: str, images: int, batch_size: int, workers: int
) -> Callable[[int], Iterable[Any]]:
    """torchvision's reader and PIL transforms in a DataLoader: a function from an epoch's number to its batches."""
    steps = [transforms.RandomCrop(32, padding=PADDING), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(CIFAR_MEAN, CIFAR_STD)]
    split = Subset(reader(root, transform=transforms.Compose(steps)), range(images))
    loader = DataLoader(split, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda epoch: loader


def in_memory_pipeline(
    reader: type[CIFAR100], root: str, images: int, batch_size: int, device: torch.device
) -> Callable[[int], Iterable[Any]]:
    """The pipeline that training on CIFAR-100 uses: a function from an epoch's number to its batches."""
    split = reader(root)
    layout = torch.contiguous_format
    pixels = torch.from_numpy(split.data[:images]).permute(0, 3, 1, 2)
    source = MemorySource(
        PaddedImages(pixels, device, layout, mirror=True),
        torch.tensor(split.targets[:images]),
        Normalization(CIFAR_MEAN, CIFAR_STD, 32, device, layout),
        seed=0,
    )
    return TrainLoader(source, batch_size, batch_size, seed=0).epoch


class SyntheticCIFAR100(CIFAR100):
    """torchvision's reader, without checking the checksums of the published files."""

    train_list = [["train", None]]  # noqa: RUF012
    test_list = [["test", None]]  # noqa: RUF012
    meta = {**CIFAR100.meta, "md5": None}  # noqa: RUF012


def write_synthetic_cifar100(folder: Path, train_images: int, test_images: int = 1) -> None:
    """Writes noise in CIFAR-100's file format below ``folder``, for :class:`SyntheticCIFAR100` to read."""
    numbers = np.random.default_rng(0)
    files = folder / CIFAR100.base_folder
    files.mkdir(parents=True)
    contents: dict[str, dict[str, Any]] = {"meta": {"fine_label_names": [f"class {label}" for label in range(100)]}}
    for split, count in (("train", train_images), ("test", test_images)):
        pixels = numbers.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        contents[split] = {"data": pixels, "fine_labels": numbers.integers(0, 100, count).tolist()}
    for name, content in contents.items():
        (files / name).write_bytes(pickle.dumps(content))


def _is_there(root: str) -> bool:
    return os.path.isdir(os.path.join(root, CIFAR100.base_folder))


def _time_in_turn(pipelines: dict[str, Callable[[int], Iterable[Any]]], rounds: int) -> dict[str, float]:
    """Median images/s by name."""
    for epochs in pipelines.values():
        _images_per_second(epochs(0))
    speeds: dict[str, list[float]] = {name: [] for name in pipelines}
    for epoch in range(1, rounds + 1):
        for name, epochs in pipelines.items():
            speeds[name].append(_images_per_second(epochs(epoch)))
    return {name: median(values) for name, values in speeds.items()}


def _images_per_second(batches: Iterable[Any]) -> float:
    start = time.perf_counter()
    count = 0
    images = None
    for images, *_ in batches:
        count += len(images)
    if images is not None and images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return count / (time.perf_counter() - start)
