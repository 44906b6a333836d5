"""Copies of published weights in the layout that kd_det loads, made once and kept in the cache."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping

import torch
from iopath.common.file_io import get_cache_dir
from torch import Tensor

from kd_det.common.files import write_atomically


def cached(name: str, make: Callable[[], Mapping[str, Tensor]], **entries: object) -> str:
    """The path of the checkpoint ``name`` in the cache, written on first use.

    Args:
        make: gives the weights, if they are not there yet.
        entries: what the checkpoint says of them beside "model" ("__author__", "matching_heuristics").
    """
    target = os.path.join(get_cache_dir(), "kd_det", f"{name}.pth")
    if not os.path.isfile(target):
        buffer = io.BytesIO()
        torch.save({"model": dict(make()), **entries}, buffer)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write_atomically(target, buffer.getbuffer())
    return target


def named_by_content(path: str) -> str:
    """The stem of a file's name and a hash of what is in it: "resnet18-f37072fd-0123456789abcdef"."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            digest.update(part)
    return f"{os.path.splitext(os.path.basename(path))[0]}-{digest.hexdigest()[:16]}"
