"""``torchvision://resnet18`` as a checkpoint path: torchvision's ImageNet networks under Detectron2's names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.tensor_files import UnreadableError, check_weights, read_tensor_file
from kd_det.pretrained.cache import cached, named_by_content

NETWORKS = ("resnet18", "resnet34", "resnet50")
PREFIX = "torchvision://"


class TorchvisionHandler(PathHandler):
    """``torchvision://NAME`` (downloaded through torchvision, in its cache) or ``torchvision://FILE.pth`` (on disk)."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        del force, kwargs
        source = path[len(PREFIX) :]
        return _converted(_download(source) if source in NETWORKS else _existing(source))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        if "w" in mode:
            raise ValueError(f"{path} is read only")
        return open(self._get_local_path(path), mode, buffering)


def convert_resnet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames a torchvision ResNet's entries to those of Detectron2's ``build_resnet_backbone``.

    Args:
        state: torchvision's state dict, "conv1.weight", "layer1.0.bn1.running_mean", "fc.bias", ...

    Returns:
        "stem.conv1.weight", "res2.0.conv1.norm.running_mean", ...; the classifier and the batch counters left out.

    Raises:
        SetupError: the entries are not a torchvision ResNet's.
    """
    converted = {}
    for name, value in state.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        new = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
        new = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", new)
        new = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", new)
        new = new.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        if not re.match(r"(stem|res[2-5]\.\d+)\.(conv\d|shortcut)\.", new):
            raise SetupError(f"MODEL.WEIGHTS: entry {name!r} is not one of a torchvision ResNet; give a ResNet's file.")
        converted[new] = value
    return converted


def _download(name: str) -> str:
    from torchvision.models import get_model_weights

    url = get_model_weights(name)["IMAGENET1K_V1"].url
    target = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.isfile(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, target, hash_prefix=re.search(r"-([0-9a-f]{8,})\.", url)[1])
        except OSError as error:
            raise SetupError(
                f"MODEL.WEIGHTS '{PREFIX}{name}': {url} cannot be downloaded ({error}). Fetch it elsewhere and give "
                f"'{PREFIX}/path/to/{os.path.basename(url)}', or put it at {target}."
            ) from error
    return target


def _existing(source: str) -> str:
    if not source.endswith((".pth", ".pt")):
        raise SetupError(
            f"MODEL.WEIGHTS '{PREFIX}{source}': known networks are {', '.join(NETWORKS)}."
            f"{did_you_mean(source, NETWORKS)} A local file must end in .pth."
        )
    if not os.path.isfile(source):
        raise SetupError(f"MODEL.WEIGHTS '{PREFIX}{source}': no file {source!r}.")
    return source


def _converted(source: str) -> str:
    return cached(
        named_by_content(source),
        lambda: convert_resnet(_read(source)),
        __author__="torchvision",
        matching_heuristics=True,
    )


def _read(source: str) -> dict[str, torch.Tensor]:
    try:
        return check_weights(read_tensor_file(source), f"MODEL.WEIGHTS {source!r}")
    except UnreadableError as error:
        raise SetupError(
            f"MODEL.WEIGHTS: {source!r} cannot be read: {error}. Delete it and fetch it again."
        ) from error


PathManager.register_handler(TorchvisionHandler(), allow_override=True)
