"""``timm://mobilenetv2_100`` as a checkpoint path: timm's own weights, for ``build_timm_fpn_backbone``.

The copy in the cache keeps timm's names; the backbone takes its entries out of it (``TimmBackbone.from_timm``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import Tensor

from kd_det.common.errors import SetupError, did_you_mean, one_line
from kd_det.common.tensor_files import UnreadableError, check_weights, read_tensor_file
from kd_det.pretrained.cache import cached, named_by_content

PREFIX = "timm://"
# Where timm and its training script put the weights in a file, the averaged ones first; else the file is the weights.
LAYOUTS = ("state_dict_ema", "model_ema", "state_dict", "model")
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


class TimmHandler(PathHandler):
    """``timm://NAME`` or ``timm://NAME.TAG`` (fetched through timm) or ``timm://FILE`` (timm's weights on disk)."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        del force, kwargs
        source = path[len(PREFIX) :]
        return _from_file(source) if source.endswith(SUFFIXES) else _from_timm(source)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        if "w" in mode:
            raise ValueError(f"{path} is read only")
        return open(self._get_local_path(path), mode, buffering)


def import_timm() -> Any:
    """The module ``timm``; a ``SetupError`` where it cannot be imported."""
    try:
        import timm
    except ImportError as error:
        raise SetupError(
            f"MODEL.BACKBONE.NAME build_timm_fpn_backbone and MODEL.WEIGHTS {PREFIX}... need timm, and timm cannot be "
            f"imported ({error}). Install it: pip install timm"
        ) from error
    return timm


def _from_timm(name: str) -> str:
    timm = import_timm()
    published = timm.list_pretrained()  # NAME.TAG
    known = {*published, *(tagged.partition(".")[0] for tagged in published)}
    if name not in known:
        raise SetupError(
            f"MODEL.WEIGHTS '{PREFIX}{name}': timm has no weights of that name.{did_you_mean(name, known)} "
            f"A local file must end in one of {', '.join(SUFFIXES)}."
        )
    config = timm.get_pretrained_cfg(name)
    return cached(f"timm-{config.architecture}.{config.tag}", lambda: _fetch(timm, name), __author__="timm")


def _fetch(timm: Any, name: str) -> Mapping[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client and the network have many kinds
        raise SetupError(
            f"MODEL.WEIGHTS '{PREFIX}{name}': timm cannot fetch the weights ({one_line(error)}). Fetch the file "
            f"elsewhere and give '{PREFIX}/path/to/model.safetensors'."
        ) from error


def _from_file(source: str) -> str:
    if not os.path.isfile(source):
        raise SetupError(f"MODEL.WEIGHTS '{PREFIX}{source}': no file {source!r}.")
    return cached(named_by_content(source), lambda: _read(source), __author__="timm")


def _read(source: str) -> Mapping[str, Tensor]:
    try:
        content = _read_safetensors(source) if source.endswith(".safetensors") else read_tensor_file(source)
    except UnreadableError as error:
        raise SetupError(f"MODEL.WEIGHTS: {source!r} cannot be read: {error}. Fetch it again.") from error
    for layout in LAYOUTS:
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
    except Exception as error:  # its reader, and torch's, have many kinds for a damaged file
        raise UnreadableError(one_line(error)) from error


PathManager.register_handler(TimmHandler(), allow_override=True)
