"""A folder of stored knowledge: a teacher's boxes and class logits for the images of data sets.

``knowledge.json`` is written last and makes the folder complete. It has the format's version, the recipe (classes, and
what made the knowledge), and for each data set its shards with their sha256 and their images. A shard is a safetensors
file with the rows of some images; the metadata of each shard repeats the recipe and the images, so that an interrupted
command can continue. ``kd_det.data.knowledge_writer`` writes such folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from kd_det.common.errors import SetupError
from kd_det.data.knowledge_format import (
    DETECTION,
    FLOOR,
    FORMAT,
    GROUND_TRUTH,
    INDEX,
    PROPOSAL,
    Identity,
    Recipe,
    StoredImage,
    decoded_logits,
    identities,
    identity,
    sha256_of,
    shard_files,
    shard_problem,
    shown,
)

__all__ = [
    "DETECTION", "FLOOR", "GROUND_TRUTH", "PROPOSAL", "Knowledge", "StoredImage", "open_knowledge", "read_index"
]  # fmt: skip


class Knowledge:
    """An open folder of knowledge. It can be pickled, and used after a fork.

    Attributes:
        folder: its path.
        source: the key or option that named it, for messages.
        classes: the student's K class names.
        shared: which of these the teacher knows, ascending; None: all. The logits of the others are ``FLOOR``.
        top_k: how many logits of a box are stored; 0: all.
        about: what made it: "command", "kd_det" (the version) and the recipe's ``made_of``.
    """

    def __init__(self, folder: str, source: str, content: Mapping[str, Any]) -> None:
        self.folder, self.source = folder, source
        self.recipe = Recipe.of_content(content["recipe"])
        self.classes, self.shared, self.top_k = self.recipe.classes, self.recipe.shared, self.recipe.top_k
        self.about: dict[str, Any] = {
            "command": str(content["command"]), "kd_det": content["kd_det"], **self.recipe.made_of,
        }  # fmt: skip
        self._shards: list[str] = []
        self._rows: list[tuple[int, int]] = []  # of each image: its shard, and its place there
        self._images: dict[str, dict[Any, tuple[int, Identity]]] = {}
        for dataset, shards in content["data_sets"].items():
            known = self._images.setdefault(dataset, {})
            for shard in shards:
                for place, image in enumerate(identities(shard["images"])):
                    known[image[0]] = len(self._rows), image
                    self._rows.append((len(self._shards), place))
                self._shards.append(shard["file"])
        self._open: dict[int, tuple[Any, list[int]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def place(self, dataset: str, record: Mapping[str, Any]) -> int:
        """The index of an image.

        Args:
            dataset: name of its data set.
            record: Detectron2's: "image_id", "file_name", "height" and "width" are read.

        Raises:
            SetupError: see ``places``.
        """
        return self.places(dataset, [record])[0]

    def places(self, dataset: str, records: Iterable[Mapping[str, Any]]) -> list[int]:
        """The indices of several images of a data set.

        Raises:
            SetupError: images are missing, or have another file name or size than those that the knowledge was made
                for; the message counts them and has the command that makes it complete.
        """
        known, wanted = self._images.get(dataset, {}), [identity(record) for record in records]
        missing = [image for image in wanted if image[0] not in known]
        if missing:
            raise SetupError(
                f"{self._named} has no knowledge of {len(missing)} of the {len(wanted)} images of {dataset!r} "
                f"({shown(missing)}). Run the command that made it again, which adds them: {self.about['command']}"
            )
        others = [image for image in wanted if known[image[0]][1] != image]
        if others:
            image, there = others[0], known[others[0][0]][1]
            raise SetupError(
                f"{self._named} was made for other images: {len(others)} of {dataset!r} differ; the image "
                f"{image[0]!r} is {_described(image)} in the data set and was {_described(there)}. Make new knowledge "
                f"in another folder: {self.about['command']}"
            )
        return [known[image[0]][0] for image in wanted]

    def image(self, index: int) -> StoredImage:
        """The boxes and log-probabilities of an image; ``index`` as ``place`` returns it.

        With ``top_k`` the mass of the rest is spread evenly over the classes that were left out.
        """
        number, place = self._rows[index]
        if number not in self._open:
            shard = safe_open(os.path.join(self.folder, self._shards[number]), framework="pt")
            counts = shard.get_tensor("counts").long()
            self._open[number] = shard, [0, *counts.cumsum(0).tolist()]
        shard, ends = self._open[number]
        rows = slice(ends[place], ends[place + 1])
        boxes, kinds = (shard.get_slice(name)[rows].clone() for name in ("boxes", "kinds"))
        stored = {name: shard.get_slice(name)[rows] for name in shard.keys() if name.startswith("logits")}  # noqa: SIM118
        return StoredImage(boxes, decoded_logits(stored, self.recipe), kinds)

    def check_classes(self, names: Sequence[str] | None, count: int) -> None:
        """Raises ``SetupError`` unless the knowledge is for these classes.

        Args:
            names: the student's class names; None: unknown, only their number is compared.
            count: the student's number of classes.
        """
        theirs, ours = list(self.classes), None if names is None or len(names) != count else list(names)
        if ours == theirs or (ours is None and len(theirs) == count):
            return
        differ = f"{len(theirs)} classes, and the student has {count}"
        if ours is not None:
            first = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
            if first is not None:
                differ += f"; class {first} is {theirs[first]!r} there and {ours[first]!r} here"
        raise SetupError(
            f"{self._named} was made for other classes: {differ}. Make new knowledge in another folder with the "
            f"student's configuration; this was made by: {self.about['command']}"
        )

    def check_teacher(self, key: str, weights: str) -> None:
        """Raises ``SetupError`` if no teacher of the knowledge has the weights in the file ``weights``.

        Imported predictions fit any teacher.

        Args:
            key: what named the file, for the message.
            weights: a local path.
        """
        teachers = self.about.get("teachers", [])
        if teachers and sha256_of(weights) not in {teacher["sha256"] for teacher in teachers}:
            made = ", ".join(str(teacher["weights"]) for teacher in teachers)
            raise SetupError(
                f"{self._named} is the knowledge of another teacher ({made}) than {key} {weights!r}. Name that "
                f"teacher, or make new knowledge in another folder; this was made by: {self.about['command']}"
            )

    @property
    def _named(self) -> str:
        return f"{self.source} {self.folder!r}"


def open_knowledge(folder: str, source: str, *, verify: bool = True) -> Knowledge:
    """Opens a folder of knowledge.

    Args:
        folder: its path.
        source: the configuration key or option that named it.
        verify: read every shard and compare its sha256. Without it, only the sizes of the files are checked.

    Raises:
        SetupError: the folder is missing, incomplete, damaged, or of a newer format.
    """
    named = f"{source} {folder!r}"
    content = read_index(folder, named)
    if content is None:
        begun = " It has shards: the command that writes it was stopped." if any(shard_files(folder)) else ""
        raise SetupError(
            f"{named} has no {INDEX}, so it is not complete knowledge.{begun} Run kd-det store-teacher with this "
            "folder as --output (again: it continues)."
        )
    knowledge = Knowledge(folder, source, content)
    for shards in content["data_sets"].values():
        for shard in shards:
            problem = shard_problem(Path(folder, shard["file"]), shard["size"], shard["sha256"] if verify else None)
            if problem:
                raise SetupError(
                    f"{named}: {problem}. Run the command that made it again, which repairs it: "
                    f"{knowledge.about['command']}"
                )
    return knowledge


def read_index(folder: str, named: str) -> dict[str, Any] | None:
    """The content of ``knowledge.json``; None if there is none.

    Raises:
        SetupError: it is damaged or of a newer format; the message begins with ``named``.
    """
    try:
        content = json.loads(Path(folder, INDEX).read_text(encoding="utf-8"))
        version = content["format"]
        if isinstance(version, int) and version > FORMAT:
            raise SetupError(
                f"{named} has format {version}, and this kd_det reads up to {FORMAT}. Update kd_det, or make it again "
                "in another folder with kd-det store-teacher."
            )
        Knowledge(folder, named, content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except SetupError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SetupError(
            f"{named}: {INDEX} is damaged ({type(error).__name__}). Remove this file and run kd-det store-teacher "
            "with this folder as --output again: finished shards are kept."
        ) from error
    return content


def _described(image: Identity) -> str:
    return f"{image[1]!r}, {image[3]}x{image[2]}"
