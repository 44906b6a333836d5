"""Images that worker processes read from files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from classification.data.loaders import Batch
from classification.data.seeding import sample_random_numbers
from classification.data.transforms import Normalization
from kd_det.common.errors import one_line
from kd_det.common.images import UnreadableImageError
from kd_det.common.images import read_image as read_any_image
from kd_det.common.signals import protect_worker, signals_blocked, worker_errors_deferred


def read_image(path: str) -> Image.Image:
    """Reads an image as RGB, without rotating it by its EXIF data: see ``kd_det.common.images.read_image``.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    try:
        return read_any_image(path, upright=False)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{error} --check-data lists all unreadable images.") from error.__cause__


Transform = Callable[[Image.Image], Tensor]  # to uint8 (3, H, W), or two views of it (2, 3, H, W)


class WorkerError(RuntimeError):
    """A data worker died."""


class ImageFiles(Dataset[Tensor | UnreadableImageError]):
    """Images by (epoch, index). This key is all that a worker needs, so that workers keep no state.

    For an unreadable image its error is returned in its place. Raised in a worker, it would be wrapped in the worker's
    traceback and keep the workers alive for seconds.
    """

    def __init__(self, paths: Sequence[str], transform: Transform, seed: int) -> None:
        # One array instead of a list of strings: reference counts would copy the list's memory into every worker.
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
    """Returns a batch, or the first error in it."""
    errors = (image for image in images if isinstance(image, UnreadableImageError))
    return next(errors, None) or default_collate(images)


class FileSource:
    """A ``Source`` of images of any size. Each is transformed by itself; a batch is normalised on the device.

    Iteration raises ``UnreadableImageError``, which names the file, at a batch with an unreadable image, and
    ``WorkerError`` at a batch that is lost because its worker died.

    Args:
        paths: the image files.
        labels: int64 (N,).
        augment: the transform for training; it draws from torch's global generator.
        prepare: the transform for evaluation.
        normalize: bytes to floats.
        seed: determines the augmentation.
        workers: the number of reading processes; 0: this process reads.
        device: the device of the batches.
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
        """The samples of each of ``batches`` (int64 indices), augmented for ``epoch``."""
        yield from self._read(self._augmented, epoch, batches)

    def plain(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """The samples of each of ``batches``, prepared for evaluation."""
        yield from self._read(self._plain, 0, batches)

    def _read(self, files: ImageFiles, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        loader = DataLoader(
            files,
            batch_sampler=([(epoch, index) for index in batch.tolist()] for batch in batches),
            collate_fn=stack_images,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=protect_worker,
            generator=torch.Generator(),  # otherwise the start of the workers draws from the global one
        )
        for images, batch in zip(_loaded(loader), batches, strict=True):
            if isinstance(images, UnreadableImageError):
                raise images
            indices = batch.to(self.device)
            views = images.to(self.device, non_blocking=True)
            # (B, 2, 3, H, W) of ``TwoViews``, (B, 3, H, W) otherwise.
            plain, *strong = map(self.normalize, views.unbind(1) if views.ndim == 5 else [views])
            yield Batch(plain, self.labels[indices], indices, *strong)


def _loaded(loader: DataLoader[Any]) -> Iterator[Tensor | UnreadableImageError]:
    """The loader's batches. The error of a worker that died is raised where a batch is waited for."""
    try:
        with signals_blocked(), worker_errors_deferred():
            batches = iter(loader)
        with worker_errors_deferred():
            yield from batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerError(
            "a data worker died, most likely for lack of memory: lower DATA.WORKERS or DATA.BATCH_SIZE "
            f"({one_line(error)})."
        ) from error
