"""The data sets by name, built and checked from the configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from fvcore.common.config import CfgNode
from tqdm import tqdm

from classification.data import transforms
from classification.data.file_source import FileSource, Transform, read_image
from classification.data.image_folders import FileData, ImagesOnDisk, read_cub, read_folders
from classification.data.labels import add_label_noise
from classification.data.loaders import EvalLoader, Source, TrainLoader
from classification.data.memory_source import MemorySource, PaddedImages
from classification.data.small_images import ImagesInMemory, MemoryData, read_cifar100, read_digits
from classification.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalization,
    auto_augment_small,
)
from classification.schema import checked
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.images import UnreadableImageError
from kd_det.common.signals import protect_worker

# The readers of the data sets; each takes DATA.ROOT.
IN_MEMORY: dict[str, Callable[[str], MemoryData]] = {
    "digits": lambda root: read_digits(),
    "cifar100": read_cifar100,
}
ON_DISK: dict[str, Callable[[str], FileData]] = {
    "imagenet": lambda root: read_folders(os.path.join(root, "imagenet")),
    "cub200": lambda root: read_cub(os.path.join(root, "CUB_200_2011")),
    "folder": read_folders,
}
# The training transforms of the data sets on disk; each takes IMAGE_SIZE and AUTO_AUGMENT.
TRAINING_TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "imagenet": transforms.area_crop_transform,
    "cub200": transforms.squashed_crop_transform,
    "folder": transforms.area_crop_transform,
}
EVALUATION_TRANSFORMS: dict[str, Callable[[int], Transform]] = {
    "imagenet": transforms.evaluation_transform,
    "cub200": transforms.squashed_evaluation_transform,
    "folder": transforms.evaluation_transform,
}
MEMORY_SIZE = 32  # height and width of the images of IN_MEMORY


@dataclass(frozen=True)
class Data:
    """One process's share of a data set."""

    train: TrainLoader
    val: EvalLoader
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # one value for each channel, for pixels from 0 to 1
    std: tuple[float, ...]
    image_size: int  # height and width


def build_data(cfg: CfgNode, device: torch.device | str, process: int = 0, processes: int = 1) -> Data:
    """The data set that ``cfg.DATA`` names.

    Args:
        device: the device of the batches, and of the images of a data set that is kept in memory.
        process: the number of this process, from 0.
        processes: the number of processes.

    Raises:
        SetupError: a setting is not valid, or the data are missing or inconsistent.
    """
    check_settings(cfg, processes)
    device = torch.device(device)
    content = _read(cfg)
    check_batch(cfg, len(content.train.labels))
    mean, std = (content.mean, content.std) if isinstance(content, MemoryData) else (IMAGENET_MEAN, IMAGENET_STD)
    layout = torch.channels_last if cfg.SOLVER.CHANNELS_LAST else torch.contiguous_format
    normalize = Normalization(mean, std, cfg.DATA.IMAGE_SIZE, device, layout)
    classes = len(content.class_names)
    labels = add_label_noise(content.train.labels, cfg.DATA.LABEL_NOISE, classes, cfg.DATA.LABEL_NOISE_SEED)
    train: Source
    val: Source
    if isinstance(content, MemoryData):
        images = content.train._replace(labels=labels)
        train = _memory_source(cfg, images, normalize, device, mirror=content.mirror, augment=True)
        val = _memory_source(cfg, content.val, normalize, device, mirror=False, augment=False)
    else:
        train = _file_source(cfg, content.train._replace(labels=labels), normalize, device)
        val = _file_source(cfg, content.val, normalize, device)
    return Data(
        train=_train_loader(cfg, train, process, processes),
        val=EvalLoader(val, cfg.DATA.EVAL_BATCH_SIZE, process, processes),
        num_classes=classes,
        class_names=content.class_names,
        mean=mean,
        std=std,
        image_size=cfg.DATA.IMAGE_SIZE,
    )


def _read(cfg: CfgNode) -> MemoryData | FileData:
    name, root = cfg.DATA.NAME, os.path.expanduser(cfg.DATA.ROOT)
    return IN_MEMORY[name](root) if name in IN_MEMORY else ON_DISK[name](root)


def _train_loader(cfg: CfgNode, source: Source, process: int, processes: int) -> TrainLoader:
    return TrainLoader(source, cfg.DATA.BATCH_SIZE, cfg.DATA.EVAL_BATCH_SIZE, cfg.SEED, process, processes)


def _memory_source(
    cfg: CfgNode, split: ImagesInMemory, normalize: Normalization, device: torch.device, *, mirror: bool, augment: bool
) -> MemorySource:
    images = PaddedImages(split.images, device, normalize.memory_format, mirror=mirror)
    policy = auto_augment_small() if augment and cfg.DATA.AUTO_AUGMENT else None
    strong = transforms.StrongAugment() if augment and cfg.DATA.STRONG_VIEW else None
    return MemorySource(images, split.labels, normalize, cfg.SEED, policy, strong)


def _file_source(cfg: CfgNode, split: ImagesOnDisk, normalize: Normalization, device: torch.device) -> FileSource:
    size = cfg.DATA.IMAGE_SIZE
    augment = TRAINING_TRANSFORMS[cfg.DATA.NAME](size, auto_augment=cfg.DATA.AUTO_AUGMENT)
    return FileSource(
        split.paths,
        split.labels,
        augment=transforms.TwoViews(augment) if cfg.DATA.STRONG_VIEW else augment,
        prepare=EVALUATION_TRANSFORMS[cfg.DATA.NAME](size),
        normalize=normalize,
        seed=cfg.SEED,
        workers=cfg.DATA.WORKERS,
        device=device,
    )


def check_name(cfg: CfgNode) -> None:
    """Raises a ``SetupError`` for an unknown DATA.NAME; it suggests the nearest name."""
    known = [*IN_MEMORY, *ON_DISK]
    name = cfg.DATA.NAME
    if name not in known:
        raise SetupError(f"DATA.NAME {name!r} does not exist.{did_you_mean(name, known)} Known: {', '.join(known)}.")


def check_settings(cfg: CfgNode, processes: int) -> None:
    """Raises a ``SetupError`` for the first key of DATA that is not valid."""
    check_name(cfg)
    _check_numbers(cfg, processes)
    _check_image_size(cfg.DATA.NAME, cfg.DATA.IMAGE_SIZE)


def check_batch(cfg: CfgNode, samples: int) -> None:
    """Raises a ``SetupError`` if a batch is larger than the training set."""
    if samples < cfg.DATA.BATCH_SIZE:
        raise SetupError(
            f"DATA.BATCH_SIZE {cfg.DATA.BATCH_SIZE} is larger than the training set of {samples} images; give at most "
            f"{samples}."
        )


def _check_numbers(cfg: CfgNode, processes: int) -> None:
    for key in ("SEED", *(f"DATA.{name}" for name in cfg.DATA)):
        checked(cfg, key)
    if cfg.DATA.BATCH_SIZE % processes:
        raise SetupError(
            f"DATA.BATCH_SIZE {cfg.DATA.BATCH_SIZE}, the batch of all processes together, is not divisible by the "
            f"{processes} processes; give a multiple of {processes}."
        )


def _check_image_size(name: str, size: int) -> None:
    if name in IN_MEMORY and size != MEMORY_SIZE:
        raise SetupError(
            f"DATA.IMAGE_SIZE {size}: the images of {name!r} are {MEMORY_SIZE} x {MEMORY_SIZE}. Leave it at "
            f"{MEMORY_SIZE}; TEACHER.IMAGE_SIZE and STUDENT.IMAGE_SIZE enlarge a network's input."
        )


def check_images(cfg: CfgNode) -> list[str]:
    """Reads every image of both splits; returns the unreadable ones as "PATH: reason". DATA.WORKERS processes read.

    Data sets that are kept in memory have none, since they are read when they are built.

    Raises:
        SetupError: the data set itself is missing or inconsistent.
    """
    check_name(cfg)
    if cfg.DATA.NAME in IN_MEMORY:
        return []
    content = _read(cfg)
    assert isinstance(content, FileData)
    paths = content.train.paths + content.val.paths
    with ProcessPoolExecutor(max(1, cfg.DATA.WORKERS), initializer=protect_worker) as pool:
        answers = pool.map(_fault_of, paths, chunksize=32)
        reasons = list(tqdm(answers, "reading images", len(paths), unit="image", disable=None))
    return [f"{path}: {reason}" for path, reason in zip(paths, reasons, strict=True) if reason]


def _fault_of(path: str) -> str:
    try:
        read_image(path)
    except UnreadableImageError as error:
        return " ".join(str(error.__cause__).split()) or type(error.__cause__).__name__
    return ""
