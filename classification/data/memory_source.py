"""Small images that are kept on the training device; a batch is cut from them by indexing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from classification.data.loaders import Batch
from classification.data.seeding import Purpose, generator, sample_random_numbers
from classification.data.transforms import Normalization

PADDING = 4  # black pixels around an image


class PaddedImages:
    """Images with a black border, and a view of every crop of them.

    With ``mirror``, each row is stored as border, image, border, mirrored image, border. So a mirrored crop is a crop
    at another column, and the whole augmentation is one gathering copy. CIFAR-100's 50,000 images take 435 MiB.

    Args:
        images: uint8 (N, 3, H, W).
        device: the device that keeps them.
        memory_format: the memory format of the crops.
        mirror: whether mirrored crops are drawn too.
    """

    def __init__(
        self, images: Tensor, device: torch.device, memory_format: torch.memory_format, *, mirror: bool
    ) -> None:
        count, channels, height, self.width = images.shape
        width, self.mirror = self.width, mirror
        columns = 2 * width + 3 * PADDING if mirror else width + 2 * PADDING
        shape = (count, channels, height + 2 * PADDING, columns)
        padded = torch.empty(shape, dtype=torch.uint8, device=device, memory_format=memory_format).zero_()
        rows = padded[:, :, PADDING : PADDING + height]
        rows[..., PADDING : PADDING + width] = images.to(device)
        if mirror:
            rows[..., 2 * PADDING + width : 2 * (PADDING + width)] = images.flip(-1).to(device)
        # (N, top, left, 3, H, W): a view of ``padded``, which takes no further memory.
        self.windows = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)

    def __len__(self) -> int:
        return self.windows.shape[0]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One random crop of each image, half of them mirrored: top rows and left columns, int64 (N,) on the CPU."""
        top = torch.randint(2 * PADDING + 1, (len(self),), generator=generator)
        left = torch.randint(2 * PADDING + 1, (len(self),), generator=generator)
        if self.mirror:
            mirrored = torch.randint(2, (len(self),), generator=generator, dtype=torch.bool)
            left = torch.where(mirrored, self.width + 3 * PADDING - left, left)
        return top, left

    def crops(self, indices: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """uint8 (B, 3, H, W): crop b starts at row ``top[b]`` and column ``left[b]`` of image ``indices[b]``."""
        return self.windows[indices, top, left]

    def whole(self, indices: Tensor) -> Tensor:
        """uint8 (B, 3, H, W): the images themselves."""
        return self.windows[indices, PADDING, PADDING]


class MemorySource:
    """A ``Source`` of small images, which are cropped, mirrored and normalised a batch at a time.

    Args:
        images: the images.
        labels: int64 (N,).
        normalize: bytes to floats.
        seed: determines crops and mirroring.
        augment: a further transform of each single image, uint8 (3, H, W), after the crop; it draws from torch's global
            generator. It makes the pipeline many times slower.
        strong: as ``augment``, of a second view of each image, from a crop of its own; None: there is no second view.
    """

    def __init__(
        self,
        images: PaddedImages,
        labels: Tensor,
        normalize: Normalization,
        seed: int,
        augment: Callable[[Tensor], Tensor] | None = None,
        strong: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images, self.normalize, self.seed, self.augment = images, normalize, seed, augment
        self.strong = strong
        self.device = images.windows.device
        self.labels = labels.to(self.device)

    def __len__(self) -> int:
        return len(self.labels)

    def augmented(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """The samples of each of ``batches`` (int64 indices), augmented for ``epoch``."""
        if not batches:
            return
        drawn = [*self.images.draw(generator(Purpose.CROPS, self.seed, epoch))]
        if self.strong is not None:
            drawn += self.images.draw(generator(Purpose.STRONG_CROPS, self.seed, epoch))
        # One transfer and one lookup for the whole epoch: a batch is then a slice.
        indices = torch.cat(list(batches)).to(self.device)
        columns = [indices, self.labels[indices], *(places.to(self.device)[indices] for places in drawn)]
        sizes = [len(batch) for batch in batches]
        for chosen, labels, top, left, *more in zip(*(column.split(sizes) for column in columns), strict=True):
            crops = _transformed(self.augment, self.images.crops(chosen, top, left), self.seed, epoch, chosen)
            images, strong = self.normalize(crops), None
            if more:
                others = self.images.crops(chosen, *more)
                others = _transformed(self.strong, others, self.seed, epoch, chosen, Purpose.STRONG_SAMPLE)
                strong = self.normalize(others)
            yield Batch(images, labels, chosen, strong)

    def plain(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """The samples of each of ``batches``, prepared for evaluation."""
        for batch in batches:
            indices = batch.to(self.device)
            yield Batch(self.normalize(self.images.whole(indices)), self.labels[indices], indices)


def _transformed(
    transform: Callable[[Tensor], Tensor] | None,
    images: Tensor,
    seed: int,
    epoch: int,
    indices: Tensor,
    purpose: Purpose = Purpose.SAMPLE,
) -> Tensor:
    """``transform`` of each image, with the random numbers of its sample; the images themselves for None."""
    if transform is None:
        return images
    results = []
    for image, index in zip(images, indices.tolist(), strict=True):
        with sample_random_numbers(seed, epoch, index, purpose):
            results.append(transform(image))
    return torch.stack(results)
