"""Samples that are read from image files by worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from classification.data.batch import Batch
from classification.data.image_file import UnreadableImageError, read_image
from classification.data.normalization import Normalization
from classification.data.seeding import sample_random_numbers

Transform = Callable[[Image.Image], Tensor]  # to uint8 (3, H, W)


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

    Iterating raises an ``UnreadableImageError``, which names the file, at the batch that has an unreadable image.

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
            generator=torch.Generator(),  # else starting the workers would take a number from the global generator
        )
        for images, batch in zip(loader, batches, strict=True):
            if isinstance(images, UnreadableImageError):
                raise images
            indices = batch.to(self.device)
            yield Batch(self.normalize(images.to(self.device, non_blocking=True)), self.labels[indices], indices)
