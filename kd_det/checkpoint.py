"""Reads checkpoints without running code from them, and writes them so that a crash leaves no partial file."""

from __future__ import annotations

import io
import os
from typing import Any
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from kd_det.common.errors import SetupError, one_line
from kd_det.common.files import write_atomically
from kd_det.common.tensor_files import UnreadableError, check_weights, read_tensor_file

# What Detectron2 raises while it matches names of another library with the model's.
MATCHING_ERRORS = (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def read_checkpoint(path: str, key: str = "checkpoint") -> dict[str, Any]:
    """Reads a checkpoint file: ``.pkl`` (model zoo), or a file that ``torch.save`` wrote.

    Args:
        path: a path or URL that Detectron2's ``PathManager`` can open.
        key: the configuration key that named it, for the messages.

    Returns:
        A dict with the key "model" (name to tensor), and "matching_heuristics" for files whose names are not
        Detectron2's own.

    Raises:
        SetupError: the file is missing, truncated, or contains anything other than tensors, arrays and plain
            containers; or the weights are not all finite tensors.
    """
    local = local_path(path, key)
    source = f"{key} {path!r}"
    try:
        data = read_tensor_file(local)
    except UnreadableError as error:
        raise SetupError(
            f"{source} cannot be read: {error}. It is truncated, or not a checkpoint of tensors; "
            "download it again or give another file."
        ) from error
    if not isinstance(data, dict):
        raise SetupError(f"{source} contains a {type(data).__name__}, not a dict of weights; give another file.")
    checkpoint = _as_detectron2(data)
    checkpoint["model"] = check_weights(checkpoint["model"], source)
    for entry, kind in (("__author__", str), ("matching_heuristics", bool)):
        if not isinstance(checkpoint.get(entry, kind()), kind):
            raise SetupError(f"{source}: {entry!r} is not a {kind.__name__}; download the file again or give another.")
    return checkpoint


def load_strictly(model: nn.Module, path: str, key: str) -> None:
    """Loads ``path`` into ``model``; every parameter and buffer of the model must be in the file.

    Args:
        model: to load into.
        path: a path or URL that Detectron2's ``PathManager`` can open.
        key: the configuration key that named the file, for the message.

    Raises:
        SetupError: as ``read_checkpoint``, or the file lacks entries of the model or has them in different shapes.
    """
    checkpointer = KDCheckpointer(model, save_to_disk=False)
    checkpoint = read_checkpoint(path, key)
    incompatible = checkpointer._load_model(checkpoint)
    shapes = {
        name: f"{name} is {ours} in the model and {theirs} in the file"
        for name, theirs, ours in incompatible.incorrect_shapes
    }
    missing = [name for name in incompatible.missing_keys if not name.endswith("num_batches_tracked")]
    faults = [*shapes.values(), *(f"{name} is not in the file" for name in missing if name not in shapes)]
    if faults:
        raise SetupError(
            f"{key}: {path!r} does not fit the model: {'; '.join(faults[:5])}"
            + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
            + ". Part of the model would stay random. Give a checkpoint that was trained with this configuration."
        )


class KDCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which reads with ``read_checkpoint`` and writes each file whole or not at all."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<save_dir>/<name>.pth`` ("model", every checkpointable, ``kwargs``) and tags it as the last."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        for key, part in self.checkpointables.items():
            data[key] = part.state_dict()
        buffer = io.BytesIO()
        torch.save(data, buffer)
        target = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", target)
        write_atomically(target, buffer.getbuffer())
        self.tag_last_checkpoint(os.path.basename(target))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename.encode())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As ``DetectionCheckpointer.load``, which would break paths with ``torchvision://`` and ``timm://``."""
        path = PathManager.get_local_path(path) if path.startswith(("torchvision://", "timm://")) else path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        url = getattr(self, "_parsed_url_during_load", None)  # upstream main: file.pth?matching_heuristics=True
        if url is not None and parse_qs(url.query).get("matching_heuristics") == ["True"]:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: Any) -> Any:
        source = checkpoint.get("__author__")
        if source == "timm":
            checkpoint = {"model": _for_timm_backbone(self.model, checkpoint["model"])}
        errors = MATCHING_ERRORS if checkpoint.get("matching_heuristics") else ()
        try:
            incompatible = super()._load_model(checkpoint)
        except errors as error:
            raise SetupError(
                f"MODEL.WEIGHTS: the names in the checkpoint cannot be matched with the model's ({one_line(error)}). "
                "Give a checkpoint of this model."
            ) from error
        if source == "torchvision":
            _check_backbone_covered(incompatible)
        return incompatible


def local_path(path: str, key: str) -> str:
    """The file on disk for ``path``, downloaded if necessary; raises a ``SetupError`` with ``key`` if there is none."""
    try:
        local = PathManager.get_local_path(path)
    except SetupError:
        raise
    except Exception as error:  # every handler (file, http, s3, ...) raises its own
        reason = one_line(error)
        raise SetupError(f"{key} {path!r} cannot be downloaded: {reason}. Give another path or URL.") from error
    if not os.path.isfile(local):
        raise SetupError(f"{key} {path!r}: no such file. Give the path or URL of a checkpoint.")
    return local


def _as_detectron2(data: dict[str, Any]) -> dict[str, Any]:
    """Converts other layouts: pycls's {"model_state"}, Caffe2 blobs, a bare state dict. Detectron2's has {"model"}."""
    if "model" in data:
        return data
    if "model_state" in data:
        return {"model": data["model_state"], "__author__": "pycls", "matching_heuristics": True}
    blobs = data.get("blobs", data)
    if not isinstance(blobs, dict) or any(isinstance(value, torch.Tensor) for value in blobs.values()):
        return {"model": dict(blobs) if isinstance(blobs, dict) else blobs}
    weights = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _for_timm_backbone(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for name, module in model.named_modules():
        if hasattr(module, "from_timm"):
            return {f"{name}.{entry}": value for entry, value in module.from_timm(state).items()}
    raise SetupError(
        "MODEL.WEIGHTS: timm's weights need a timm backbone. Set MODEL.BACKBONE.NAME build_timm_fpn_backbone and "
        "MODEL.TIMM.NAME, or give another checkpoint."
    )


def _check_backbone_covered(incompatible: Any) -> None:
    faults = [name for name, *_ in incompatible.incorrect_shapes]
    faults += [name for name in incompatible.unexpected_keys if not name.startswith("stem.fc.")]
    faults += [name for name in incompatible.missing_keys if ".stem." in name or ".res" in name]
    if faults:
        raise SetupError(
            f"MODEL.WEIGHTS: the torchvision network is not the backbone of this configuration: "
            f"{', '.join(faults[:5])} do not correspond. Set MODEL.RESNETS.DEPTH (and RES2_OUT_CHANNELS 64 for "
            "ResNet-18/34) to match it."
        )
