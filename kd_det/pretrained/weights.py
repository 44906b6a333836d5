"""``torchvision://resnet18`` and ``timm://mobilenetv2_100`` as checkpoint paths.

Both are converted once and kept in Detectron2's cache. torchvision's ResNets get Detectron2's names there; timm's
weights keep theirs, and ``build_timm_fpn_backbone`` selects its entries (``TimmBackbone.from_timm``).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir
from torch import Tensor

from kd_det.common.errors import SetupError, did_you_mean, one_line
from kd_det.common.files import write_atomically
from kd_det.common.tensor_files import UnreadableError, check_weights, read_tensor_file

TORCHVISION = "torchvision://"
TIMM = "timm://"
RESNETS = ("resnet18", "resnet34", "resnet50")
TIMM_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# Where timm and its training script put the weights in a file, the averaged ones first; else the file is the weights.
TIMM_LAYOUTS = ("state_dict_ema", "model_ema", "state_dict", "model")


class _WeightsHandler(PathHandler):
    """Paths ``<prefix><source>`` that stand for a converted checkpoint in the cache."""

    prefix: str

    @abstractmethod
    def _converted(self, source: str) -> str:
        """The path of the converted checkpoint."""

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        del force, kwargs
        return self._converted(path[len(self.prefix) :])

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if "w" in mode:
            raise ValueError(f"{path} is read only")
        return open(self._get_local_path(path), mode, buffering)


class TorchvisionHandler(_WeightsHandler):
    """``torchvision://NAME`` (downloaded to torch's cache) or ``torchvision://FILE.pth`` (a file on disk)."""

    prefix = TORCHVISION

    def _converted(self, source: str) -> str:
        file = _download_resnet(source) if source in RESNETS else _existing_resnet(source)
        return _cached(
            _named_by_content(file),
            lambda: convert_resnet(_read_resnet(file)),
            __author__="torchvision",
            matching_heuristics=True,
        )


class TimmHandler(_WeightsHandler):
    """``timm://NAME`` or ``timm://NAME.TAG`` (fetched by timm) or ``timm://FILE`` (timm's weights on disk)."""

    prefix = TIMM

    def _converted(self, source: str) -> str:
        return _timm_file(source) if source.endswith(TIMM_SUFFIXES) else _timm_network(source)


def _cached(name: str, make: Callable[[], Mapping[str, Tensor]], **entries: object) -> str:
    """The path of the checkpoint ``name`` in the cache; it is written on first use.

    Args:
        make: gives the weights; called if they are not in the cache.
        entries: the checkpoint's entries beside "model" ("__author__", "matching_heuristics").
    """
    target = os.path.join(get_cache_dir(), "kd_det", f"{name}.pth")
    if not os.path.isfile(target):
        buffer = io.BytesIO()
        torch.save({"model": dict(make()), **entries}, buffer)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write_atomically(target, buffer.getbuffer())
    return target


def _named_by_content(path: str) -> str:
    """The stem of a file's name and a hash of its content: "resnet18-f37072fd-0123456789abcdef"."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            digest.update(part)
    return f"{os.path.splitext(os.path.basename(path))[0]}-{digest.hexdigest()[:16]}"


def convert_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a torchvision ResNet's entries to those of Detectron2's ``build_resnet_backbone``.

    Args:
        state: torchvision's state dict, "conv1.weight", "layer1.0.bn1.running_mean", "fc.bias", ...

    Returns:
        "stem.conv1.weight", "res2.0.conv1.norm.running_mean", ..., without the classifier and the batch counters.

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


def _download_resnet(name: str) -> str:
    from torchvision.models import get_model_weights

    url = get_model_weights(name)["IMAGENET1K_V1"].url
    target = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.isfile(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", url)
        try:
            torch.hub.download_url_to_file(url, target, hash_prefix=digest[1] if digest else None)
        except OSError as error:
            raise SetupError(
                f"MODEL.WEIGHTS '{TORCHVISION}{name}': {url} cannot be downloaded ({error}). Download it elsewhere and "
                f"give '{TORCHVISION}/path/to/{os.path.basename(url)}', or put it at {target}."
            ) from error
    return target


def _existing_resnet(source: str) -> str:
    if not source.endswith((".pth", ".pt")):
        raise SetupError(
            f"MODEL.WEIGHTS '{TORCHVISION}{source}': known networks are {', '.join(RESNETS)}."
            f"{did_you_mean(source, RESNETS)} A local file must end in .pth."
        )
    if not os.path.isfile(source):
        raise SetupError(f"MODEL.WEIGHTS '{TORCHVISION}{source}': there is no file {source!r}.")
    return source


def _read_resnet(source: str) -> dict[str, Tensor]:
    try:
        return check_weights(read_tensor_file(source), f"MODEL.WEIGHTS {source!r}")
    except UnreadableError as error:
        raise SetupError(
            f"MODEL.WEIGHTS: {source!r} cannot be read: {error}. Delete it and download it again."
        ) from error


def import_timm() -> Any:
    """The module ``timm``; raises ``SetupError`` if it cannot be imported."""
    try:
        import timm
    except ImportError as error:
        raise SetupError(
            f"MODEL.BACKBONE.NAME build_timm_fpn_backbone and MODEL.WEIGHTS {TIMM}... need timm, and timm cannot be "
            f"imported ({error}). Install it: pip install timm"
        ) from error
    return timm


def _timm_network(name: str) -> str:
    timm = import_timm()
    published = timm.list_pretrained()  # NAME.TAG
    known = {*published, *(tagged.partition(".")[0] for tagged in published)}
    if name not in known:
        raise SetupError(
            f"MODEL.WEIGHTS '{TIMM}{name}': timm has no weights of that name.{did_you_mean(name, known)} "
            f"A local file must end in one of {', '.join(TIMM_SUFFIXES)}."
        )
    config = timm.get_pretrained_cfg(name)
    return _cached(f"timm-{config.architecture}.{config.tag}", lambda: _fetch_timm(timm, name), __author__="timm")


def _fetch_timm(timm: Any, name: str) -> Mapping[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client and the network raise many kinds
        raise SetupError(
            f"MODEL.WEIGHTS '{TIMM}{name}': timm cannot download the weights ({one_line(error)}). Download the file "
            f"elsewhere and give '{TIMM}/path/to/model.safetensors'."
        ) from error


def _timm_file(source: str) -> str:
    if not os.path.isfile(source):
        raise SetupError(f"MODEL.WEIGHTS '{TIMM}{source}': there is no file {source!r}.")
    return _cached(_named_by_content(source), lambda: _read_timm(source), __author__="timm")


def _read_timm(source: str) -> Mapping[str, Tensor]:
    try:
        content = _read_safetensors(source) if source.endswith(".safetensors") else read_tensor_file(source)
    except UnreadableError as error:
        raise SetupError(f"MODEL.WEIGHTS: {source!r} cannot be read: {error}. Download it again.") from error
    for layout in TIMM_LAYOUTS:
        if isinstance(content, dict) and content.get(layout) is not None:
            content = content[layout]
            break
    weights: dict[str, Tensor] = import_timm().models.clean_state_dict(
        check_weights(content, f"MODEL.WEIGHTS {source!r}")
    )
    return weights


def _read_safetensors(source: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file

        return load_file(source)
    except Exception as error:  # its reader, and torch's, raise many kinds for a damaged file
        raise UnreadableError(one_line(error)) from error


for handler in (TorchvisionHandler(), TimmHandler()):
    PathManager.register_handler(handler, allow_override=True)
