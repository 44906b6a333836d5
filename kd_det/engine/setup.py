"""How a command of detection reads its configuration and checks it, before data sets and weights are read.

``read_setup`` is for every command; ``read_run`` also builds the model without memory for its weights.
"""

from __future__ import annotations

import argparse
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from torch import nn

import kd_det
import kd_det.pretrained  # registers torchvision:// and timm://
from kd_det.common.errors import SetupError, one_line_errors, whole_number
from kd_det.config import load_config, plain_config
from kd_det.config.check import check_keys, check_settings
from kd_det.config.model_rules import check_maps, check_model
from kd_det.config.training_rules import check_proposal_files, check_training
from kd_det.data.coco_json import use_datasets
from kd_det.modeling import DistillRCNN
from kd_det.modeling.terms import TERMS
from kd_det.teacher.config import live_terms, rpn_user, teacher_config
from kd_det.teacher.frozen import check_heads, check_image_formats
from kd_det.teacher.stored import check_stored

__all__ = ["one_line_errors", "read_setup"]

logger = logging.getLogger(__name__)

NOT_GIVEN = "the default"


def read_setup(
    config_file: str | Sequence[str],
    overrides: Sequence[object] = (),
    datasets: Sequence[str] = (),
    *,
    processes: int = 1,
) -> CfgNode:
    """Reads the configuration, checks every key of it, registers its data sets and chooses its device.

    Args:
        config_file: paths or names of shipped configurations, see ``load_config``; empty: Detectron2's defaults.
        overrides: KEY VALUE ...
        datasets: the values of ``--dataset``.
        processes: the value of ``--num-gpus``, for commands with that option.

    Raises:
        SetupError: the configuration is not valid, a data set cannot be registered, or there is no such device.
    """
    whole_number("--num-gpus", processes, 1)
    cfg = load_config(config_file, overrides, device=NOT_GIVEN)
    check_settings(cfg)
    for term in TERMS.values():
        check_keys(cfg, term.checks)
    check_model(cfg)
    _find_device(cfg, processes)
    use_datasets(cfg, datasets)
    return cfg


def _find_device(cfg: CfgNode, processes: int) -> None:
    """Checks ``MODEL.DEVICE``. If it was not given, sets it to the GPU, or to the CPU if there is none."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    given = cfg.MODEL.DEVICE != NOT_GIVEN
    if processes > max(1, gpus) and (not given or cfg.MODEL.DEVICE.startswith("cuda")):
        raise SetupError(
            f"--num-gpus is {processes} but there are {gpus} GPUs. Give a number up to {max(1, gpus)}; with "
            "MODEL.DEVICE cpu it is the number of processes on the CPU."
        )
    if given:
        _check_device(cfg.MODEL.DEVICE, gpus, processes)
        return
    cfg.MODEL.DEVICE = "cuda" if gpus else "cpu"
    if not gpus and comm.is_main_process():
        logger.warning("PyTorch finds no GPU: using the CPU. Set MODEL.DEVICE cpu to avoid this warning.")


def _check_device(name: str, gpus: int, processes: int) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SetupError(f"MODEL.DEVICE is {name!r}; it must be cuda or cpu, or another device of PyTorch's.") from None
    if device.type == "cuda" and not gpus:
        raise SetupError(f"MODEL.DEVICE is {name!r} but PyTorch finds no GPU here. Add MODEL.DEVICE cpu.")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise SetupError(f"MODEL.DEVICE is {name!r} but there are {gpus} GPUs, numbered from 0. Set it to cuda.")
    if device.type == "cuda" and device.index is not None and processes > 1:
        raise SetupError(f"MODEL.DEVICE is {name!r} for --num-gpus {processes}; each takes its own. Set it to cuda.")
    if device.type not in ("cuda", "cpu") and not _works(device):
        raise SetupError(f"MODEL.DEVICE is {name!r}, but PyTorch has no such device here. Set it to cuda or cpu.")


def _works(device: torch.device) -> bool:
    try:
        return device.type != "meta" and torch.zeros(1, device=device).item() == 0
    except (RuntimeError, NotImplementedError, AssertionError, ModuleNotFoundError, AttributeError):
        return False  # raised by back ends that are not built in or have no hardware


def read_run(args: argparse.Namespace) -> CfgNode:
    """The configuration of a run, checked as far as possible without reading data sets and weights.

    Args:
        args: of ``detectron2.engine.default_argument_parser``, and optionally ``dataset``, of
            ``kd_det.data.coco_json.add_dataset_option``.

    Raises:
        SetupError: see ``read_setup``, ``check_training_run`` and ``check_evaluation_run``.
    """
    cfg = read_setup(args.config_file, args.opts, getattr(args, "dataset", ()), processes=args.num_gpus)
    if args.eval_only:
        check_evaluation_run(cfg)
    else:
        check_training_run(cfg, args.num_gpus * args.num_machines)
    return cfg


def check_training_run(cfg: CfgNode, processes: int = 1) -> nn.Module:
    """Checks settings, student, teacher, terms, optimiser and OUTPUT_DIR of a training run.

    Args:
        cfg: what ``read_setup`` returned.
        processes: how many processes train together.

    Returns:
        the student, without memory for its weights.

    Raises:
        SetupError: training cannot start.
    """
    check_output_dir(cfg)
    _check_distils(cfg)
    check_training(cfg, processes)
    check_proposal_files(cfg, ("TRAIN", "TEST"))
    if cfg.KD.TEACHER.STORED:
        check_stored(cfg, verify=comm.is_main_process())
    if live_terms(cfg) or rpn_user(cfg):
        _check_teacher(cfg)
    student = dry_build(cfg)
    dry_build_solver(cfg, student)
    return student


def check_evaluation_run(cfg: CfgNode) -> None:
    """Checks settings and OUTPUT_DIR of an evaluation. The teacher's files are not needed.

    Raises:
        SetupError: the student cannot be evaluated.
    """
    check_output_dir(cfg)
    check_proposal_files(cfg, ("TEST",))
    dry_build(plain_config(cfg))


def check_output_dir(cfg: CfgNode) -> None:
    """Raises ``SetupError`` unless OUTPUT_DIR is a writable folder or can be created."""
    path = os.path.abspath(cfg.OUTPUT_DIR)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise SetupError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}, but {path!r} is not a folder. Give another.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise SetupError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}, but {path!r} cannot be written to. Change its permissions, or give "
            "another folder."
        )


def _check_distils(cfg: CfgNode) -> None:
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    distils = isinstance(architecture, type) and issubclass(architecture, DistillRCNN)
    node = cfg.KD.TEACHER
    given = {
        "KD.TERMS": tuple(cfg.KD.TERMS), "DATASETS.UNLABELED": tuple(cfg.DATASETS.UNLABELED),
        "KD.TEACHER.STORED": node.STORED, "KD.TEACHER.PROPOSALS": node.PROPOSALS,
    }  # fmt: skip
    for key, value in given.items():
        if value and not distils:
            raise SetupError(
                f"{key} is {value!r}, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} does not distil: it "
                f"would train without a teacher. Set it to DistillRCNN, or set {key} to {type(value)()!r} for the "
                "plain student."
            )


def _check_teacher(cfg: CfgNode) -> None:
    teacher_cfg = teacher_config(cfg)
    check_image_formats(cfg, teacher_cfg)
    with _naming(cfg.KD.TEACHER.CONFIG_FILE):
        model = dry_build(teacher_cfg)
    check_heads(model, cfg.KD.TEACHER.CONFIG_FILE, rpn_for=rpn_user(cfg))


@contextmanager
def _naming(config_file: str) -> Iterator[None]:
    """Adds to an error that it is about the teacher's configuration."""
    try:
        yield
    except SetupError as error:
        raise SetupError(f"KD.TEACHER.CONFIG_FILE {config_file!r}, with KD.TEACHER.OPTS: {error}") from error


PACKAGE = str(Path(kd_det.__file__).parent) + os.sep


def dry_build(cfg: CfgNode) -> nn.Module:
    """The model that ``cfg`` describes, on the meta device.

    Raises:
        SetupError: it cannot be built, a part reads maps that the backbone does not have, or the machine has less
            memory than its weights need.
    """
    try:
        return _build(cfg, "meta")
    except SetupError:
        raise
    except Exception:  # Detectron2, timm and registered parts raise many kinds
        # Some networks read values while they are built, and the meta device has none.
        try:
            with torch.random.fork_rng(devices=[]):
                return _build(cfg, "cpu")
        except SetupError:
            raise
        except Exception as error:
            raise _explained(error, "the model") from error


def dry_build_solver(cfg: CfgNode, model: nn.Module) -> None:
    """Builds the optimiser and the schedule of a model that ``dry_build`` returned.

    Raises:
        SetupError: they cannot be built.
    """
    try:
        build_lr_scheduler(cfg, build_optimizer(cfg, model))
    except Exception as error:  # torch, fvcore and Detectron2 raise many kinds
        raise _explained(error, "the optimiser or its schedule") from error


def _build(cfg: CfgNode, device: str) -> nn.Module:
    with torch.device(device):
        check_maps(cfg, build_backbone(cfg).output_shape())
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)  # build_model would move it to a device
    _check_size(model)
    if cfg.MODEL.DEVICE == "cpu":
        _check_convolutions(model)
    return model


def _check_convolutions(model: nn.Module) -> None:
    if any(isinstance(part, (DeformConv, ModulatedDeformConv)) for part in model.modules()):
        raise SetupError(
            "MODEL.DEVICE is 'cpu', but the model has deformable convolutions (MODEL.RESNETS.DEFORM_ON_PER_STAGE), "
            "which Detectron2 has for GPUs only. Use a GPU, or set all four to False."
        )


def _check_size(model: nn.Module) -> None:
    sizes = {name: value.numel() * value.element_size() for name, value in model.named_parameters()}
    needed, available = sum(sizes.values()), _memory()
    if needed > available:
        largest = max(sizes, key=lambda name: sizes[name])
        raise SetupError(
            f"MODEL: the weights need {needed / 2**30:.0f} GiB, but this machine has {available / 2**30:.0f} GiB of "
            f"memory. The largest is {largest}, {tuple(model.get_parameter(largest).shape)}; lower the MODEL.* "
            "key that sets its size."
        )


def _memory() -> float:
    """The machine's memory in bytes; infinite if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _explained(error: Exception, what: str) -> Exception:
    """``error`` as a ``SetupError``, unless it was raised in this package: that is a bug."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames[-1].filename.startswith(PACKAGE):
        return error
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    where = f"{frames[-1].name}, {Path(frames[-1].filename).name} line {frames[-1].lineno}"
    return SetupError(
        f"{what} cannot be built with these settings: {reason} ({where}). Compare the keys with a similar "
        "configuration of the model zoo."
    )
