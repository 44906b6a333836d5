"""Small weight files, and their way into models as both packages load them."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import kd_det.checkpoint
from classification.checkpoint import read_student
from classification.networks import load_weights
from kd_det.common.errors import SetupError


def network() -> nn.Module:
    return nn.Sequential(OrderedDict(conv1=nn.Conv2d(1, 2, 3), bn=nn.BatchNorm2d(2), fc=nn.Linear(2, 3, bias=False)))


def contents() -> list[dict[str, Any]]:
    """What files hold: a training run's checkpoint, a bare state dict, a student with facts about it."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    run = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 7, "best": np.float64(1)}
    student = {"model": model.state_dict(), "name": "x", "num_classes": 3, "flag": torch.tensor([True, False])}
    return [run, model.state_dict(), student]


def saved(content: Any, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def zoo_pickles() -> list[bytes]:
    """The model zoo's layout by every protocol, Caffe2's, and arrays of other kinds."""
    arrays = {name: value.numpy().copy(order="F") for name, value in network().state_dict().items()}
    zoo = {"model": arrays, "__author__": "zoo", "kinds": [np.ones(3, kind) for kind in ("f2", ">i4", "?")]}
    caffe2 = {"blobs": {"conv1_w": np.zeros((2, 1, 3, 3), "f4"), "conv1_w_momentum": np.zeros(1)}, "cfg": "MODEL: {}"}
    return [pickle.dumps(zoo, protocol) for protocol in range(6)] + [pickle.dumps(caffe2, 2)]


def load_in_both(path: Path) -> None:
    """Loads the file as detection and as classification do; raises the last ``SetupError``."""
    refused = None
    try:
        kd_det.checkpoint.load_strictly(network(), str(path), "MODEL.WEIGHTS")
    except SetupError as error:
        refused = error
    content = read_student(path, "TEACHER.WEIGHTS")
    load_weights(network(), path, content["model"], "TEACHER.WEIGHTS")
    if refused:
        raise refused
