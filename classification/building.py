"""What a run is made of, from its configuration."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from classification import data as datasets
from classification.checkpoint import load_strictly, read_student
from classification.data import Data
from classification.data.catalog import check_name
from classification.data.confidence import rank_by_confidence
from classification.distillers import DISTILLERS, Pair, build_distiller, distiller_class
from classification.schema import check_values
from classification.step import TrainingStep
from classification.teacher import Teacher, build_teacher, check_description, create_from
from kd_det.common.errors import SetupError


def build_data(cfg: CfgNode, accelerator: Accelerator) -> Data:
    """The data sets, this process's share of them."""
    return datasets.build_data(cfg, accelerator.device, accelerator.process_index, accelerator.num_processes)


def build_student(cfg: CfgNode, data: Data) -> nn.Module:
    """The student, with the weights that the configuration names, or random ones.

    Raises:
        SetupError: there is no such model or file, or the file is of another model.
    """
    node = cfg.STUDENT
    if node.WEIGHTS and node.PRETRAINED:
        raise SetupError("STUDENT.WEIGHTS and STUDENT.PRETRAINED are both set; give one of the two.")
    student = create_from(node, data)
    if node.WEIGHTS:
        path = Path(node.WEIGHTS)
        content = read_student(path, "STUDENT.WEIGHTS")
        check_description(content, path, "STUDENT", node.NAME, data)
        load_strictly(student, path, content["model"], "STUDENT.WEIGHTS")
    return student


def build_networks(cfg: CfgNode, data: Data, device: torch.device) -> tuple[Teacher | None, TrainingStep]:
    """The teacher, where the method needs one, and student and distiller, on ``device``."""
    student = build_student(cfg, data)
    teacher = build_teacher(cfg, data) if distiller_class(cfg.DISTILLER).needs_teacher else None
    distiller = build_distiller(cfg, _pair(student, teacher, data))
    step = TrainingStep(student, distiller, cfg.CE_WEIGHT).to(device)
    networks = [student] if teacher is None else [student, teacher.to(device).model]
    for network in networks:
        if cfg.SOLVER.CHANNELS_LAST:
            network.to(memory_format=torch.channels_last)
        if cfg.SOLVER.COMPILE:
            network.compile()
    return teacher, step


def _pair(student: nn.Module, teacher: Teacher | None, data: Data) -> Pair:
    """What a distiller is built for; the two answer images of noise once."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, data.image_size, data.image_size, generator=generator)
    was_training = student.training
    student.eval()
    with torch.no_grad():
        student_out = student(images, return_features=True)
        teacher_out = None if teacher is None else teacher(images)
    student.train(was_training)
    return Pair(student, teacher and teacher.model, student_out, teacher_out, data.train.samples)


def distilled_samples(cfg: CfgNode, data: Data, teacher: Teacher | None) -> Tensor | None:
    """Which training samples are distilled, bool (n,), as DATA.CONFIDENCE_RANGE has it; None: all.

    The teacher looks at every training image once, as it would for evaluation.
    """
    if teacher is None or tuple(cfg.DATA.CONFIDENCE_RANGE) == (0.0, 1.0):
        return None
    confidence: Tensor | None = None
    for batch in data.train.plain():
        probabilities = teacher(batch.images).logits.double().softmax(1)
        own = probabilities.gather(1, batch.labels.unsqueeze(1)).squeeze(1)
        if confidence is None:
            confidence = own.new_zeros(data.train.samples)
        confidence[batch.indices] = own
    return rank_by_confidence(confidence, tuple(cfg.DATA.CONFIDENCE_RANGE))


def build_optimizer(cfg: CfgNode, step: nn.Module) -> Optimizer:
    """SGD with momentum, or AdamW, of all that is trained."""
    solver = cfg.SOLVER
    parameters = [p for p in step.parameters() if p.requires_grad]
    if solver.OPTIMIZER == "adamw":
        return AdamW(parameters, lr=solver.LR, weight_decay=solver.WEIGHT_DECAY)
    return SGD(parameters, lr=solver.LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY)


def build_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The learning rate's schedule, stepped once an epoch."""
    solver = cfg.SOLVER
    if solver.SCHEDULE == "cosine":
        return CosineAnnealingLR(optimizer, solver.EPOCHS)
    return MultiStepLR(optimizer, list(solver.STEPS), solver.GAMMA)


def build_accelerator(cfg: CfgNode) -> Accelerator:
    """Device, precision, processes and trackers."""
    trackers = ["tensorboard"]
    if cfg.WANDB:
        if find_spec("wandb") is None:
            raise SetupError("WANDB True: wandb is not installed. Install it, or set WANDB False.")
        trackers.append("wandb")
    # The others wait for the process that trains the teacher.
    handlers = [InitProcessGroupKwargs(timeout=timedelta(days=30))] if cfg.TEACHER.AUTO_TRAIN else None
    # Without this, Accelerate takes several processes without a GPU for as many separate ones.
    cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    return Accelerator(
        cpu=cpu,
        mixed_precision=cfg.SOLVER.MIXED_PRECISION,
        log_with=trackers,
        project_dir=cfg.OUTPUT_DIR,
        kwargs_handlers=handlers,
    )


def check_config(cfg: CfgNode) -> None:
    """Raises ``SetupError`` for a key that cannot work; what depends on data and networks is checked with them."""
    check_values(cfg)
    DISTILLERS.check_sections(cfg)
    distiller_class(cfg.DISTILLER)
    check_name(cfg)
