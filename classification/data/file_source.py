"""Samples that are read from image files by worker processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from classification.data.batch import Batch
from classification.data.image_file import UnreadableImageError, read_image
from classification.data.normalization import Normalization
from classification.data.seeding import sample_random_numbers
from kd_det.common.signals import protect_worker, signals_blocked

Transform = Callable[[Image.Image], Tensor]  # to uint8 (3, H, W)


class WorkerError(RuntimeError):
    """A data worker died."""


class ImageFiles(Dataset[Tensor | UnreadableImageError]):
    """Images by (epoch, index): what is asked for tells all that workers need, so they keep no state.

    The error of an unreadable image is given in its place: raised in a worker, it would come wrapped in the worker's
    traceback and keep the workers alive for seconds.
    """

    def __init__(self, paths: Sequence[str], transform: Transform, seed: int) -> None:
        # One array, not a list of strings: counting references would copy a list's memory into every worker.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Tensor | UnreadableImageError:
        epoch, index = key
        try:
            image = read_image(os.fsdecode(self.paths[index]))
        except UnreadableImageError as error:
            return error
        with sample_random_numbers(self.seed, epoch, index):
            return self.transform(image)


def stack_images(images: list[Tensor | UnreadableImageError]) -> Tensor | UnreadableImageError:
    """A batch, or the first error in it."""
    errors = (image for image in images if isinstance(image, UnreadableImageError))
    return next(errors, None) or default_collate(images)


class FileSource:
    """Images of any size, each transformed by itself, normalised a batch at a time on the device.

    Iterating raises an ``UnreadableImageError``, which names the file, at the batch that has an unreadable image, and a
    ``WorkerError`` at the batch that a worker that died does not give.

    Args:
        paths: of the image files.
        labels: int64 (N,).
        augment: the transform of training; takes its random numbers from torch's global generator.
        prepare: the transform of evaluation.
        normalize: bytes to floats.
        seed: of the augmentation.
        workers: processes that read; 0: this one does.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Tensor,
        *,
        augment: Transform,
        prepare: Transform,
        normalize: Normalization,
        seed: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self._augmented = ImageFiles(paths, augment, seed)
        self._plain = ImageFiles(paths, prepare, seed)
        self.labels, self.normalize, self.workers, self.device = labels.to(device), normalize, workers, device

    def __len__(self) -> int:
        return len(self.labels)

    def augmented(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """The samples of each of ``batches`` (int64 indices), as they look in ``epoch``."""
        yield from self._read(self._augmented, epoch, batches)

    def plain(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """The samples of each of ``batches`` as they are evaluated."""
        yield from self._read(self._plain, 0, batches)

    def _read(self, files: ImageFiles, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        loader = DataLoader(
            files,
            batch_sampler=([(epoch, index) for index in batch.tolist()] for batch in batches),
            collate_fn=stack_images,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=protect_worker,
            generator=torch.Generator(),  # else starting the workers would take a number from the global generator
        )
        for images, batch in zip(_started(loader), batches, strict=True):
            if isinstance(images, UnreadableImageError):
                raise images
            indices = batch.to(self.device)
            yield Batch(self.normalize(images.to(self.device, non_blocking=True)), self.labels[indices], indices)


def _started(loader: DataLoader[Tensor]) -> Iterator[Tensor | UnreadableImageError]:
    """The loader's batches.

    PyTorch raises the error of a worker's death wherever the main thread is, in the middle of a step too. Here it is
    raised where a batch is waited for, within seconds.
    """
    try:
        with signals_blocked(), _own_handler_of_deaths():
            batches = iter(loader)
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerError(
            "a data worker died, most likely for want of memory: lower DATA.WORKERS or DATA.BATCH_SIZE."
        ) from error


@contextmanager
def _own_handler_of_deaths() -> Iterator[None]:
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
