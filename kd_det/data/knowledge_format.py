"""The format of stored knowledge: a recipe, shards with rows of boxes and logits, and what recognises an image.

Shape legend: N boxes of an image, R boxes of a shard, K classes of the student, k logits kept for each box.
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
