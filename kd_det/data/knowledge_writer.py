"""Writes a folder of stored knowledge: whole or not at all, by one or several processes, and resumable after a kill."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from kd_det import __version__
from kd_det.common.config_files import leaves
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically
from kd_det.data.knowledge import read_index
from kd_det.data.knowledge_format import (
    FORMAT,
    INDEX,
    METADATA,
    Identity,
    Recipe,
    StoredImage,
    encoded_logits,
    identities,
    identity,
    sha256_of,
    shard_files,
    shard_metadata,
    shard_problem,
    shown,
)

logger = logging.getLogger(__name__)

SHARD_IMAGES = 256


class Part(NamedTuple):
    """The images of a shard that is to be written.

    Attributes:
        dataset: name of their data set.
        number: of the shard.
        positions: of the images in the data set's records.
    """

    dataset: str
    number: int
    positions: tuple[int, ...]


class KnowledgeWriter:
    """A folder that is written shard by shard; ``finish`` makes it complete.

    The plan and the bytes depend only on the images, on the recipe and on what was stored before, not on the number
    of processes or on interruptions. Only one command may write at a time: see ``kd_det.common.files.run_lock``.

    Args:
        folder: created if it does not exist. Shards of an earlier run with the same recipe are kept.
        recipe: of all that is written.
        sets: each data set's name and its records, of which "image_id", "file_name", "height" and "width" are read.
        command: the command line that writes the folder; a message about a damaged folder repeats it.
        option: the option that named the folder, for messages.
        shard_images: images in a shard; an interrupted command loses what it has of unfinished shards.

    Raises:
        SetupError: the folder has knowledge of another recipe, of other images, or of a newer format.
    """

    def __init__(
        self,
        folder: str,
        recipe: Recipe,
        sets: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        command: str,
        option: str = "--output",
        shard_images: int = SHARD_IMAGES,
    ) -> None:
        self.folder, self.recipe, self.command = folder, recipe, command
        self._named, self._shard_images = f"{option} {folder!r}", shard_images
        self._sets = {name: [identity(record) for record in records] for name, records in sets.items()}
        os.makedirs(folder, exist_ok=True)
        self._written = self._shards_of_index()
        self._kept = self._read_shards()
        names = {path.name for path in self._kept}
        self._written = {name: shard for name, shard in self._written.items() if name in names}
        for name, images in self._sets.items():
            self._check_same_images(name, images)

    def missing(self) -> list[Part]:
        """The shards that are not written yet, in order. To be called by one process before any of them writes."""
        taken = {path.name for path in self._kept}
        free = (number for number in count() if file_name(number) not in taken)
        parts = []
        for name, images in self._sets.items():
            known = {image[0] for image in self._stored(name)}
            positions = [position for position, image in enumerate(images) if image[0] not in known]
            for start in range(0, len(positions), self._shard_images):
                parts.append(Part(name, next(free), tuple(positions[start : start + self._shard_images])))
        return parts

    def write(self, part: Part, images: Sequence[StoredImage]) -> Path:
        """Writes a shard of ``missing``. Several processes may write different shards at the same time.

        Args:
            part: the shard.
            images: the content of each of its images, in their order.

        Raises:
            ValueError: the shapes do not fit, or a value is nan.
        """
        if len(images) != len(part.positions):
            raise ValueError(f"{len(images)} images were given for a shard of {len(part.positions)}")
        for image in images:
            _check(image, len(self.recipe.classes) + 1)
        joined = StoredImage(*(torch.cat(parts) for parts in zip(*images, strict=True)))
        tensors = {
            "boxes": joined.boxes.float(),
            "kinds": joined.kinds,
            "counts": torch.tensor([len(image.boxes) for image in images]),
            **encoded_logits(joined.logits.float(), self.recipe),
        }
        metadata = {
            "format": FORMAT, "recipe": self.recipe.content(), "data_set": part.dataset,
            "images": [self._sets[part.dataset][position] for position in part.positions],
        }  # fmt: skip
        path = Path(self.folder, file_name(part.number))
        write_atomically(path, _serialised(tensors, metadata))
        return path

    def finish(self) -> int:
        """Writes ``knowledge.json``. To be called by one process after all have written their shards.

        Returns:
            how many images the folder has.

        Raises:
            RuntimeError: an image has not been written.
        """
        self._kept = self._read_shards()
        if self.missing():
            raise RuntimeError(f"{len(self.missing())} shards are not written")
        data_sets: dict[str, list[dict[str, Any]]] = {}
        for path, (name, images) in self._kept.items():
            before = self._written.get(path.name)
            sha256 = sha256_of(path) if before is None else before["sha256"]
            entry = {"file": path.name, "size": path.stat().st_size, "sha256": sha256, "images": images}
            data_sets.setdefault(name, []).append(entry)
        content = {
            "format": FORMAT, "kd_det": __version__, "command": self.command, "recipe": self.recipe.content(),
            "data_sets": data_sets,
        }  # fmt: skip
        write_atomically(Path(self.folder, INDEX), json.dumps(content).encode())
        for path in shard_files(self.folder):
            if path not in self._kept:  # damaged, and its images are in another shard now
                path.unlink()
        return sum(len(images) for _, images in self._kept.values())

    def _shards_of_index(self) -> dict[str, dict[str, Any]]:
        """The shards that an earlier, finished run has listed, by file name."""
        content = read_index(self.folder, self._named)
        if content is None:
            return {}
        self._check_recipe(content["recipe"])
        return {shard["file"]: shard for shards in content["data_sets"].values() for shard in shards}

    def _read_shards(self) -> dict[Path, tuple[str, list[Identity]]]:
        """Data set and images of every shard that is as it was written."""
        kept: dict[Path, tuple[str, list[Identity]]] = {}
        for path in shard_files(self.folder):
            metadata, before = shard_metadata(path), self._written.get(path.name)
            problem = "" if before is None else shard_problem(path, before["size"], before["sha256"])
            if metadata is None or problem:
                logger.warning("%s: %s; it is made again", self._named, problem or f"{path.name} is damaged")
                continue
            self._check_recipe(metadata["recipe"])
            kept[path] = metadata["data_set"], identities(metadata["images"])
        return kept

    def _check_recipe(self, there: Mapping[str, Any]) -> None:
        ours, theirs = (dict(leaves(content)) for content in (self.recipe.content(), there))
        differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if differing:
            listed = "; ".join(
                f"{key} is {theirs.get(key)!r:.100} there, {ours.get(key)!r:.100} now" for key in differing
            )
            raise SetupError(
                f"{self._named} has knowledge that another command made: {listed}. Give another folder, or remove "
                "this one."
            )

    def _check_same_images(self, name: str, images: Sequence[Identity]) -> None:
        there = {image[0]: image for image in self._stored(name)}
        others = [image for image in images if there.get(image[0], image) != image]
        if others:
            raise SetupError(
                f"{self._named} was made for other images of {name!r}: {len(others)} have another file name or size "
                f"now ({shown(others)}). Give another folder, or remove this one."
            )

    def _stored(self, name: str) -> list[Identity]:
        return [image for dataset, images in self._kept.values() if dataset == name for image in images]


def file_name(number: int) -> str:
    """The name of a shard's file."""
    return f"shard-{number:05d}.safetensors"


def _serialised(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    return save(
        {name: value.contiguous() for name, value in tensors.items()}, metadata={METADATA: json.dumps(metadata)}
    )


def _check(image: StoredImage, columns: int) -> None:
    rows = len(image.boxes)
    shapes = (tuple(image.boxes.shape), tuple(image.logits.shape), tuple(image.kinds.shape))
    if shapes != ((rows, 4), (rows, columns), (rows,)) or image.kinds.dtype != torch.uint8:
        raise ValueError(f"boxes, logits and kinds have the shapes {shapes} for {columns} columns")
    if not image.boxes.isfinite().all() or image.logits.isnan().any() or (image.logits == torch.inf).any():
        raise ValueError("a box or a logit is not finite")
