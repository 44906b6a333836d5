"""A folder of stored knowledge: a teacher's boxes and class logits for the images of data sets.

``knowledge.json`` is written last and makes the folder complete. It has the format's version, the recipe (classes, and
what made the knowledge), and for each data set its shards with their sha256 and their images. A shard is a safetensors
file with the rows of some images; the metadata of each shard repeats the recipe and the images, so that an interrupted
command can continue. ``kd_det.data.knowledge_writer`` writes such folders.

Shape legend: N boxes of an image, K classes of the student, R boxes of a shard, k logits kept for each box.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_det.common.errors import SetupError

FORMAT = 1
INDEX = "knowledge.json"
METADATA = "kd_det"  # the only entry: safetensors does not keep the order of several
GROUND_TRUTH, DETECTION, PROPOSAL = 0, 1, 2
# The log-probability of what is impossible. It is finite, so that 0 * log(0) is not nan, and exact in float16.
FLOOR = -1e4
DTYPES = {"float16": torch.float16, "float32": torch.float32}

Identity = tuple[Any, str, int, int]  # image_id, base file name, height, width


class StoredImage(NamedTuple):
    """What is stored for an image, the best boxes first.

    Attributes:
        boxes: (N, 4) float32, XYXY in the image's own pixels.
        logits: (N, K+1) float32, log-probabilities over the student's classes, the background last.
        kinds: (N,) uint8: ``GROUND_TRUTH``, ``DETECTION`` or ``PROPOSAL``.
    """

    boxes: Tensor
    logits: Tensor
    kinds: Tensor


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content of a folder, besides its images.

    Attributes:
        classes: the student's K class names.
        shared: which of these the teacher knows, ascending; None: all.
        top_k: how many logits of a box are stored beside the mass of the rest; 0: all.
        dtype: of the stored log-probabilities, a name of ``DTYPES``.
        made_of: JSON that says what made the knowledge: teachers with the sha256 of their weights, views, ...
    """

    classes: tuple[str, ...]
    shared: tuple[int, ...] | None = None
    top_k: int = 0
    dtype: str = "float16"
    made_of: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> Tensor:
        """Indices of the logits that the teacher can give, the background last; int64."""
        return torch.tensor([*(range(len(self.classes)) if self.shared is None else self.shared), len(self.classes)])

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Recipe:
        """The recipe that ``content`` was made from; TypeError, KeyError or ValueError for any other JSON."""
        shared = content["shared"]
        recipe = cls(
            tuple(content["classes"]), None if shared is None else tuple(shared), int(content["top_k"]),
            content["dtype"], dict(content["made_of"]),
        )  # fmt: skip
        if recipe.dtype not in DTYPES or recipe.columns.max() != len(recipe.classes):
            raise ValueError("a recipe that does not fit together")
        return recipe


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


def shard_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The shards in a folder, by name."""
    return sorted(Path(folder).glob("shard-*.safetensors"))


def shard_problem(path: Path, size: int, sha256: str | None) -> str:
    """What is wrong with a shard, for a message; "" if nothing is.

    Args:
        path: of the shard.
        size: in bytes, as it was written.
        sha256: as it was written; None: not compared.
    """
    if not path.is_file():
        return f"the shard {path.name} is missing"
    found = path.stat().st_size
    if found != size:
        return f"the shard {path.name} has {found} bytes instead of {size}: it is " + (
            "truncated" if found < size else "changed"
        )
    if sha256 is not None and sha256_of(path) != sha256:
        return f"the shard {path.name} is not as it was written: its sha256 differs"
    return ""


def shard_metadata(path: Path) -> dict[str, Any] | None:
    """The metadata of a shard: "format", "recipe", "data_set", "images"; None if it is not a whole shard."""
    try:
        with safe_open(path, framework="pt") as shard:
            metadata = json.loads(shard.metadata()[METADATA])
        return metadata if isinstance(metadata, dict) else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def encoded_logits(logits: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Log-probabilities (R, K+1) as they are stored."""
    dtype, columns = DTYPES[recipe.dtype], recipe.columns
    inside = logits.index_select(1, columns)
    if not 0 < recipe.top_k < len(columns):
        dense = torch.full_like(logits, FLOOR).index_copy(1, columns, inside.clamp(min=FLOOR))
        return {"logits": dense.to(dtype)}
    top, places = inside.topk(recipe.top_k, dim=1)
    rest = inside.scatter(1, places, -math.inf).logsumexp(1)
    return {
        "logits_top": top.clamp(min=FLOOR).to(dtype),
        "logits_classes": columns[places].to(torch.uint16),
        "logits_rest": rest.clamp(min=FLOOR).to(dtype),
    }


def decoded_logits(stored: Mapping[str, Tensor], recipe: Recipe) -> Tensor:
    """What ``encoded_logits`` returned, as (R, K+1) float32."""
    if "logits" in stored:
        return stored["logits"].float().clone()
    top, columns = stored["logits_top"].float(), recipe.columns
    each = stored["logits_rest"].float() - math.log(len(columns) - top.shape[1])
    dense = torch.full((len(top), len(recipe.classes) + 1), FLOOR)
    dense[:, columns] = each.clamp(min=FLOOR).unsqueeze(1)
    return dense.scatter(1, stored["logits_classes"].long(), top)


def row_bytes(classes: int, top_k: int, dtype: str) -> int:
    """The size of a stored box with its logits, in bytes."""
    width, columns = DTYPES[dtype].itemsize, classes + 1
    logits = top_k * (width + 2) + width if 0 < top_k < columns else columns * width
    return 4 * 4 + 1 + logits


def identity(record: Mapping[str, Any]) -> Identity:
    """What a Detectron2 record's image is recognised by. Without an "image_id" its base file name is taken."""
    name = os.path.basename(record["file_name"])
    return record.get("image_id", name), name, int(record["height"]), int(record["width"])


def identities(content: Iterable[Sequence[Any]]) -> list[Identity]:
    """Identities that were stored as JSON."""
    return [(number, str(name), int(height), int(width)) for number, name, height, width in content]


def shown(images: Sequence[Identity]) -> str:
    """The first three images, for a message."""
    more = ", ..." if len(images) > 3 else ""
    return ", ".join(f"{image[0]!r} {image[1]}" for image in images[:3]) + more


def _described(image: Identity) -> str:
    return f"{image[1]!r}, {image[3]}x{image[2]}"
