"""Imports published CIFAR-100 checkpoints (RepDistiller's and mdistiller's ``cifar_teachers``) as ``model.pth`` files.

The layout of an archive or folder is ``.../<name>_vanilla/ckpt_epoch_240.pth``. A file is a pickle of
``{"model": state dict, "epoch": ..., "best_acc": ...}``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from classification.data.small_images import CIFAR_MEAN, CIFAR_STD
from classification.models.archive import archive_files
from classification.models.factory import create_model, model_names, short_name
from classification.models.protocol import ClassificationModel
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically
from kd_det.common.tensor_files import UnreadableError, check_weights, read_tensor_file

NUM_CLASSES = 100
SHOWN_KEYS = 3


class PublishedTeacher(NamedTuple):
    """A published checkpoint, loaded."""

    name: str  # for create_model
    source: str  # the path in the archive or folder
    model: ClassificationModel


def published_teachers(path: Path) -> Iterator[PublishedTeacher]:
    """The teachers in a .tar (compressed or not), a .zip or a folder, one at a time.

    The model of a file is the one that its folder's name, ``<name>_vanilla``, or its own name begins with. Files of no
    known model are skipped.

    Raises:
        SetupError: ``path`` is none of these; it has no file of a known model, or two files of one model; a file is
            damaged, does not fit its model, or is larger than a teacher can be.
    """
    found: dict[str, str] = {}
    for source, read in archive_files(path):
        name = _model_of(source)
        if name in found:
            remedy = "unpack it and keep one of them"
            raise SetupError(f"{path} has two files of {name}: {found[name]} and {source}; {remedy}.")
        if name:
            found[name] = source
            yield PublishedTeacher(name, source, load_published(name, read(), f"{path}: {source}"))
    if not found:
        layout = "resnet32x4_vanilla/ckpt_epoch_240.pth"
        raise SetupError(f"{path} has no file of a known model, such as {layout}. Known: {', '.join(model_names())}.")


def load_published(name: str, content: bytes, source: str) -> ClassificationModel:
    """The model ``name`` with the published file's weights, in evaluation mode. ``source`` is for error messages."""
    try:
        checkpoint = read_tensor_file(io.BytesIO(content))
    except UnreadableError as error:
        raise SetupError(f"{source} is not a checkpoint, or is truncated: {error}.") from error
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise SetupError(f'{source} has no weights under "model", where published checkpoints have them.')
    weights = {key.removeprefix("module."): value for key, value in check_weights(weights, source).items()}
    model = create_model(name, NUM_CLASSES)
    _check_fit(name, model, weights, source)
    model.load_state_dict(weights)
    return model.eval()


@torch.inference_mode()
def cifar100_accuracy(model: ClassificationModel, data_root: Path, batch_size: int = 500) -> float:
    """Top-1 accuracy in percent on CIFAR-100's 10,000 test images, read by torchvision from ``data_root``.

    Raises:
        SetupError: they are not there.
    """
    from torchvision.datasets import CIFAR100

    try:
        data = CIFAR100(str(data_root), train=False)
    except RuntimeError as error:
        raise SetupError(
            f"--data-root {data_root} has no intact cifar-100-python/; give a folder that has, or --no-eval."
        ) from error
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
    labels = torch.tensor(data.targets)
    right = 0
    for first in range(0, len(labels), batch_size):
        batch = slice(first, first + batch_size)
        images = torch.from_numpy(data.data[batch]).permute(0, 3, 1, 2) / 255
        right += int((model((images - mean) / std).argmax(1) == labels[batch]).sum())
    return 100 * right / len(labels)


def save_teacher(teacher: PublishedTeacher, output: Path) -> Path:
    """Writes ``<output>/cifar100/vanilla_<short name>/model.pth`` and returns its path."""
    path = output / "cifar100" / f"vanilla_{short_name(teacher.name)}" / "model.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    facts = {"name": teacher.name, "num_classes": NUM_CLASSES, "data": "cifar100"}
    torch.save({"model": teacher.model.state_dict(), **facts}, content)
    write_atomically(path, content.getbuffer())
    return path


def _model_of(source: str) -> str | None:
    """The model of a file such as "resnet8x4_vanilla/x.pth", "resnet8x4/student_best" or "resnet8x4_best.pth"."""
    path = PurePosixPath(source)
    if path.name.startswith(".") or path.suffix not in (".pth", ".pt", ".tar", ""):
        return None
    by_length = sorted(model_names(), key=len, reverse=True)
    for part in (path.parent.name, path.name):
        for name in by_length:
            if re.match(rf"{name}(?![0-9A-Za-z])", part):
                return name
    return None


def _check_fit(name: str, model: ClassificationModel, weights: dict[str, Tensor], source: str) -> None:
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    differing = [key for key in [*own, *given] if own.get(key) != given.get(key)]
    if differing:
        shown = [f"{key} ({_is(given.get(key))}, {name} {_is(own.get(key))})" for key in differing[:SHOWN_KEYS]]
        raise SetupError(
            f"{source} is not a {name} for {NUM_CLASSES} classes. The first keys that differ: {', '.join(shown)}."
        )


def _is(shape: tuple[int, ...] | None) -> str:
    return "lacks it" if shape is None else f"has {'x'.join(map(str, shape)) or 'a scalar'}"
