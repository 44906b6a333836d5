"""Builds a model without memory for its weights, to find what does not fit before data and weights are read."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

import kd_det
from kd_det.common.errors import SetupError
from kd_det.config.model_rules import check_maps

PACKAGE = str(Path(kd_det.__file__).parent) + os.sep


def dry_build(cfg: CfgNode) -> nn.Module:
    """The model that ``cfg`` describes, on the meta device.

    Raises:
        SetupError: it cannot be built, a part asks for maps that the backbone does not give, or the machine has less
            memory than its weights need.
    """
    try:
        return _build(cfg, "meta")
    except SetupError:
        raise
    except Exception:  # Detectron2, timm and registered parts raise anything
        # Some networks look at values while they are built, which the meta device does not have.
        try:
            with torch.random.fork_rng(devices=[]):
                return _build(cfg, "cpu")
        except SetupError:
            raise
        except Exception as error:
            raise _explained(error, "the model") from error


def dry_build_solver(cfg: CfgNode, model: nn.Module) -> None:
    """Builds the optimiser and the schedule of a model that ``dry_build`` gave.

    Raises:
        SetupError: they cannot be built.
    """
    try:
        build_lr_scheduler(cfg, build_optimizer(cfg, model))
    except Exception as error:  # torch, fvcore and Detectron2 raise anything
        raise _explained(error, "the optimiser or its schedule") from error


def _build(cfg: CfgNode, device: str) -> nn.Module:
    with torch.device(device):
        check_maps(cfg, build_backbone(cfg).output_shape())
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)  # build_model would move it
    _check_size(model)
    if cfg.MODEL.DEVICE == "cpu":
        _check_convolutions(model)
    return model


def _check_convolutions(model: nn.Module) -> None:
    if any(isinstance(part, (DeformConv, ModulatedDeformConv)) for part in model.modules()):
        raise SetupError(
            "MODEL.DEVICE is 'cpu', but the model has deformable convolutions (MODEL.RESNETS.DEFORM_ON_PER_STAGE), "
            "which Detectron2 has for GPUs only. Take a GPU, or set all four to False."
        )


def _check_size(model: nn.Module) -> None:
    sizes = {name: value.numel() * value.element_size() for name, value in model.named_parameters()}
    needed, there = sum(sizes.values()), _memory()
    if needed > there:
        largest = max(sizes, key=lambda name: sizes[name])
        raise SetupError(
            f"MODEL: the weights need {needed / 2**30:.0f} GiB, but this machine has {there / 2**30:.0f} GiB of "
            f"memory. The largest is {largest}, {tuple(model.get_parameter(largest).shape)}; make the MODEL.* key that "
            "it comes from smaller."
        )


def _memory() -> float:
    """The machine's memory in bytes; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _explained(error: Exception, what: str) -> Exception:
    """``error`` as a ``SetupError``, unless it is a fault of this package."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames[-1].filename.startswith(PACKAGE):
        return error
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    where = f"{frames[-1].name}, {Path(frames[-1].filename).name} line {frames[-1].lineno}"
    return SetupError(
        f"{what} cannot be built with these settings: {reason} ({where}). Compare the keys with a configuration of the "
        "model zoo that is near to it."
    )
