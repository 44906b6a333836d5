"""Samples that are kept on the training device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from classification.data.batch import Batch
from classification.data.normalization import Normalization
from classification.data.padded import PaddedImages
from classification.data.seeding import Purpose, generator, sample_random_numbers


class MemorySource:
    """Small images, cropped, mirrored and normalised a batch at a time.

    Args:
        images: the images.
        labels: int64 (N,).
        normalize: bytes to floats.
        seed: of crops and mirroring.
        augment: also applied to each image alone, uint8 (3, H, W), after the crop; takes its random numbers from
            torch's global generator. It makes the pipeline many times slower.
    """

    def __init__(
        self,
        images: PaddedImages,
        labels: Tensor,
        normalize: Normalization,
        seed: int,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images, self.normalize, self.seed, self.augment = images, normalize, seed, augment
        self.device = images.windows.device
        self.labels = labels.to(self.device)

    def __len__(self) -> int:
        return len(self.labels)

    def augmented(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """The samples of each of ``batches`` (int64 indices), as they look in ``epoch``."""
        if not batches:
            return
        drawn = self.images.draw(generator(Purpose.CROPS, self.seed, epoch))
        # One transfer and one lookup for the whole epoch; a batch is then a slice.
        indices = torch.cat(list(batches)).to(self.device)
        columns = [indices, self.labels[indices], *(places.to(self.device)[indices] for places in drawn)]
        sizes = [len(batch) for batch in batches]
        for chosen, labels, top, left in zip(*(column.split(sizes) for column in columns), strict=True):
            crops = self._augment_each(self.images.crops(chosen, top, left), epoch, chosen)
            yield Batch(self.normalize(crops), labels, chosen)

    def plain(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """The samples of each of ``batches`` as they are evaluated."""
        for batch in batches:
            indices = batch.to(self.device)
            yield Batch(self.normalize(self.images.whole(indices)), self.labels[indices], indices)

    def _augment_each(self, images: Tensor, epoch: int, indices: Tensor) -> Tensor:
        if self.augment is None:
            return images
        augmented = []
        for image, index in zip(images, indices.tolist(), strict=True):
            with sample_random_numbers(self.seed, epoch, index):
                augmented.append(self.augment(image))
        return torch.stack(augmented)
