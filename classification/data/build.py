"""Data sets from the configuration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fvcore.common.config import CfgNode

from classification.data.catalog import IN_MEMORY, ON_DISK, TRAINING_TRANSFORMS, root_of
from classification.data.contents import ImagesInMemory, ImagesOnDisk, MemoryData
from classification.data.file_source import FileSource
from classification.data.label_noise import add_label_noise
from classification.data.loaders import EvalLoader, Source, TrainLoader
from classification.data.memory_source import MemorySource
from classification.data.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalization
from classification.data.padded import PaddedImages
from classification.data.settings import check_batch, check_settings
from classification.data.transforms import auto_augment_small, evaluation_transform


@dataclass(frozen=True)
class Data:
    """One process's share of a data set."""

    train: TrainLoader
    val: EvalLoader
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # of each channel, for pixels from 0 to 1
    std: tuple[float, ...]
    image_size: int  # height and width


def build_data(cfg: CfgNode, device: torch.device | str, process: int = 0, processes: int = 1) -> Data:
    """The data set that ``cfg.DATA`` names.

    Args:
        device: where the batches are, and the images of a data set that is kept in memory.
        process: which of ``processes`` this one is, from 0.

    Raises:
        SetupError: a setting cannot work, or the data are missing or inconsistent.
    """
    check_settings(cfg, processes)
    device = torch.device(device)
    content = {**IN_MEMORY, **ON_DISK}[cfg.DATA.NAME](root_of(cfg))
    check_batch(cfg, len(content.train.labels))
    in_memory = isinstance(content, MemoryData)
    mean, std = (content.mean, content.std) if in_memory else (IMAGENET_MEAN, IMAGENET_STD)
    layout = torch.channels_last if cfg.SOLVER.CHANNELS_LAST else torch.contiguous_format
    normalize = Normalization(mean, std, cfg.DATA.IMAGE_SIZE, device, layout)
    classes = len(content.class_names)
    labels = add_label_noise(content.train.labels, cfg.DATA.LABEL_NOISE, classes, cfg.SEED)
    train_images = content.train._replace(labels=labels)
    if in_memory:
        train = _memory_source(cfg, train_images, normalize, device, mirror=content.mirror, augment=True)
        val = _memory_source(cfg, content.val, normalize, device, mirror=False, augment=False)
    else:
        train, val = (_file_source(cfg, split, normalize, device) for split in (train_images, content.val))
    return Data(
        train=_train_loader(cfg, train, process, processes),
        val=EvalLoader(val, cfg.DATA.EVAL_BATCH_SIZE, process, processes),
        num_classes=classes,
        class_names=content.class_names,
        mean=mean,
        std=std,
        image_size=cfg.DATA.IMAGE_SIZE,
    )


def _train_loader(cfg: CfgNode, source: Source, process: int, processes: int) -> TrainLoader:
    return TrainLoader(source, cfg.DATA.BATCH_SIZE, cfg.DATA.EVAL_BATCH_SIZE, cfg.SEED, process, processes)


def _memory_source(
    cfg: CfgNode, split: ImagesInMemory, normalize: Normalization, device: torch.device, *, mirror: bool, augment: bool
) -> MemorySource:
    images = PaddedImages(split.images, device, normalize.memory_format, mirror=mirror)
    policy = auto_augment_small() if augment and cfg.DATA.AUTO_AUGMENT else None
    return MemorySource(images, split.labels, normalize, cfg.SEED, policy)


def _file_source(cfg: CfgNode, split: ImagesOnDisk, normalize: Normalization, device: torch.device) -> FileSource:
    size = cfg.DATA.IMAGE_SIZE
    return FileSource(
        split.paths,
        split.labels,
        augment=TRAINING_TRANSFORMS[cfg.DATA.NAME](size, auto_augment=cfg.DATA.AUTO_AUGMENT),
        prepare=evaluation_transform(size),
        normalize=normalize,
        seed=cfg.SEED,
        workers=cfg.DATA.WORKERS,
        device=device,
    )
