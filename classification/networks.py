"""Student and teacher: created, loaded with weights, checked, and the teacher frozen."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.checkpoint import read_student, weights_path
from classification.data import Data
from classification.distillers import NetworkPair, build_distiller, distiller_class
from classification.distillers.sdd import linear_classifier
from classification.models import ClassificationModel, ModelOutput, ReusedClassifier, create_model, resize_inputs
from classification.models.library_model import probing
from classification.schema import checked
from classification.step import TrainingStep
from kd_det.common.errors import SetupError, one_line
from kd_det.common.tensor_files import check_weights

logger = logging.getLogger(__name__)

WORDNET_NAME = re.compile(r"n\d{8}")  # of a class folder of ImageNet
SHOWN_FAULTS = 3


class FrozenTeacher(nn.Module):
    """A model that is never trained: always in evaluation mode, without gradients, outside every checkpoint.

    Args:
        model: a model of ``classification.models``.
        data_mean, data_std: the normalisation of its input images.
        own_mean, own_std: the normalisation of the images that it was trained on; None: the same.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        data_mean: tuple[float, ...],
        data_std: tuple[float, ...],
        own_mean: tuple[float, ...] | None = None,
        own_std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        mean, std, own_means, own_stds = (
            torch.tensor(values).view(-1, 1, 1)
            for values in (data_mean, data_std, own_mean or data_mean, own_std or data_std)
        )
        self.renormalizes = not (torch.equal(mean, own_means) and torch.equal(std, own_stds))
        self.register_buffer("scale", std / own_stds)
        self.register_buffer("shift", (mean - own_means) / own_stds)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> ModelOutput:
        """The model's output for ``images`` (B, 3, H, W)."""
        if self.renormalizes:
            images = torch.addcmul(self.shift, images, self.scale)
        return self.model(images, return_features=True)


def build_networks(cfg: CfgNode, data: Data, device: torch.device) -> tuple[FrozenTeacher | None, TrainingStep]:
    """The teacher, if the method needs one, and the student with its distiller, on ``device``.

    Raises:
        SetupError: see ``build_student``, ``build_teacher`` and ``build_distiller``.
    """
    student = build_student(cfg, data)
    teacher = build_teacher(cfg, data) if distiller_class(cfg.DISTILLER).needs_teacher else None
    if teacher is not None and distiller_class(cfg.DISTILLER).reuses_classifier:
        student = _with_classifier_of(teacher, student, cfg, data)
    distiller = build_distiller(cfg, _pair(student, teacher, data))
    step = TrainingStep(student, distiller, cfg.CE_WEIGHT).to(device)
    networks = [student] if teacher is None else [student, teacher.to(device).model]
    for network in networks:
        if cfg.SOLVER.CHANNELS_LAST:
            network.to(memory_format=torch.channels_last)
        if cfg.SOLVER.COMPILE:
            network.compile()
    return teacher, step


def _pair(student: nn.Module, teacher: FrozenTeacher | None, data: Data) -> NetworkPair:
    """What a distiller is built for: both networks, with their outputs for two images of noise."""
    images = _noise(data)
    was_training = student.training
    student.eval()
    with torch.no_grad():
        student_out = student(images, return_features=True)
        teacher_out = None if teacher is None else teacher(images)
    student.train(was_training)
    return NetworkPair(
        student, teacher and teacher.model, student_out, teacher_out, data.train.samples, data.train.labels
    )


def _noise(data: Data) -> Tensor:
    """Two images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, data.image_size, data.image_size, generator=generator)


def _with_classifier_of(
    teacher: FrozenTeacher, student: ClassificationModel, cfg: CfgNode, data: Data
) -> ReusedClassifier:
    """``student`` with a copy of the teacher's classifier.

    Raises:
        SetupError: the teacher does not classify its map's average by a linear layer, or the student cannot take it.
    """
    if isinstance(student, ReusedClassifier):
        raise SetupError(
            f"STUDENT.WEIGHTS {cfg.STUDENT.WEIGHTS!r}: it has a teacher's classifier already. Give a plain student."
        )
    classifier = linear_classifier(cfg.DISTILLER, "TEACHER.NAME", cfg.TEACHER.NAME, teacher.model)
    images = _noise(data)
    out = teacher(images)
    with probing(student):
        channels = student(images, return_features=True).map.shape[1]
    reduction = checked(cfg, "SIMKD.REDUCTION")
    if reduction > out.map.shape[1]:
        raise SetupError(f"SIMKD.REDUCTION {reduction}: the teacher's map has {out.map.shape[1]} channels; take fewer.")
    size = out.map.shape[2], out.map.shape[3]
    settings = {"student_channels": channels, "teacher_channels": out.map.shape[1], "size": size}
    reused = ReusedClassifier(student, data.num_classes, **settings, reduction=reduction)
    reused.classifier.load_state_dict(classifier.state_dict())
    return reused


def build_student(cfg: CfgNode, data: Data) -> ClassificationModel:
    """The student that ``cfg.STUDENT`` describes, with random weights if it names none.

    Raises:
        SetupError: there is no such model or file, or the file has a different model or different classes.
    """
    node = cfg.STUDENT
    if node.WEIGHTS and node.PRETRAINED:
        raise SetupError("STUDENT.WEIGHTS and STUDENT.PRETRAINED are both set; give one of the two.")
    student = create_from(node, data)
    return _load_file(student, Path(node.WEIGHTS), "STUDENT", node.NAME, data) if node.WEIGHTS else student


def build_teacher(cfg: CfgNode, data: Data, *, uses_logits: bool | None = None) -> FrozenTeacher:
    """The teacher that ``cfg.TEACHER`` describes.

    Args:
        cfg: the configuration.
        data: what the student is trained on.
        uses_logits: whether the method uses the teacher's logits, not only its features. None: as DISTILLER and
            DATA.CONFIDENCE_RANGE imply.

    Raises:
        SetupError: TEACHER names no model or no weights, there is no such model or file, or the file has a different
            model or different classes.
    """
    node = cfg.TEACHER
    if not node.NAME:
        raise SetupError(f"DISTILLER {cfg.DISTILLER!r} needs a teacher; set TEACHER.NAME and TEACHER.WEIGHTS.")
    if bool(node.WEIGHTS) == node.PRETRAINED:
        raise SetupError(
            f"TEACHER.WEIGHTS {node.WEIGHTS!r} with TEACHER.PRETRAINED {node.PRETRAINED}: give one of the two. "
            "Otherwise the teacher would be random, or have two sets of weights."
        )
    model = create_from(node, data)
    if node.PRETRAINED:
        if uses_logits is None:
            part = tuple(cfg.DATA.CONFIDENCE_RANGE) != (0.0, 1.0)
            uses_logits = part or distiller_class(cfg.DISTILLER).compares_logits
        _check_classifier(cfg, model, data, uses_logits)
        return FrozenTeacher(model, data.mean, data.std, model.input_mean, model.input_std)
    model = _load_file(model, weights_path(node.WEIGHTS), "TEACHER", node.NAME, data)
    return FrozenTeacher(model, data.mean, data.std)


def create_from(node: CfgNode, data: Data) -> ClassificationModel:
    """The model that ``cfg.STUDENT`` or ``cfg.TEACHER`` names, for the data's classes. WEIGHTS are not loaded."""
    size = node.IMAGE_SIZE or data.image_size
    model = create_model(node.NAME, data.num_classes, pretrained=node.PRETRAINED, stem=node.STEM, image_size=size)
    resize_inputs(model, node.IMAGE_SIZE)
    return model


def _load_file(model: ClassificationModel, path: Path, section: str, name: str, data: Data) -> ClassificationModel:
    """``model`` with the file's weights, and with the classifier of a teacher if the file's model has one."""
    key = f"{section}.WEIGHTS"
    content = read_student(path, key)
    _check_description(content, path, section, name, data)
    settings = content.get("reused_classifier")
    if settings is not None:
        try:
            model = ReusedClassifier(model, data.num_classes, **settings)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SetupError(
                f"{key}: {str(path)!r} does not describe a student with a teacher's classifier ({one_line(error)}). "
                "Train it again."
            ) from error
    load_weights(model, path, content["model"], key)
    return model


def _check_description(content: dict[str, Any], path: Path, section: str, name: str, data: Data) -> None:
    """Raises ``SetupError`` if a file of ``read_student`` describes a different model or different classes."""
    saved = content.get("name", name)
    if saved != name:
        raise SetupError(f"{section}.WEIGHTS: {str(path)!r} is a {saved!r}, {section}.NAME is {name!r}; change one.")
    classes = content.get("num_classes", data.num_classes)
    if classes != data.num_classes:
        raise SetupError(
            f"{section}.WEIGHTS: {str(path)!r} has {classes} classes, the data {data.num_classes}; "
            "give a model trained on the same classes."
        )
    names = content.get("class_names") or data.class_names
    if list(names) != list(data.class_names):
        first = next(i for i, (a, b) in enumerate(zip(names, data.class_names, strict=True)) if a != b)
        raise SetupError(
            f"{section}.WEIGHTS: class {first} of {str(path)!r} is {names[first]!r}, that of the data "
            f"{data.class_names[first]!r}; give a model trained on the same classes in the same order."
        )


def load_weights(model: nn.Module, path: Path, weights: Mapping[str, Tensor], key: str) -> None:
    """Loads ``weights``, which must have exactly the model's entries, in the same shapes and finite.

    Args:
        model: the model.
        path: the file of the weights, for messages.
        weights: the state dict.
        key: the configuration key that names the file, for messages.

    Raises:
        SetupError: they do not. The message names the first entries that differ.
    """
    weights = check_weights(dict(weights), f"{key}: {str(path)!r}")
    ours = model.state_dict()
    faults = [f"{name} is not in the file" for name in ours if name not in weights]
    faults += [f"{name} is not in the model" for name in weights if name not in ours]
    faults += [
        f"{name} is {tuple(value.shape)} in the model and {tuple(weights[name].shape)} in the file"
        for name, value in ours.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if faults:
        more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise SetupError(f"{key}: {str(path)!r} has a different model: {'; '.join(faults[:SHOWN_FAULTS])}{more}.")
    model.load_state_dict(weights)


def _check_classifier(cfg: CfgNode, model: ClassificationModel, data: Data, uses_logits: bool) -> None:
    """Raises ``SetupError`` if a library's model has other classes than the data and its logits are used."""
    imagenet = cfg.DATA.NAME == "imagenet" or all(WORDNET_NAME.fullmatch(name) for name in data.class_names)
    if model.has_own_classifier and imagenet:
        return
    problem = f"TEACHER.PRETRAINED True: {cfg.TEACHER.NAME!r} was not trained on the classes of the data"
    if uses_logits:
        raise SetupError(
            f"{problem}. Its logits, which are used (DISTILLER {cfg.DISTILLER!r}, DATA.CONFIDENCE_RANGE "
            f"{tuple(cfg.DATA.CONFIDENCE_RANGE)}), mean nothing here. First train it on these data with "
            "STUDENT.PRETRAINED True and give its model.pth as TEACHER.WEIGHTS, or take a DISTILLER that uses only "
            "features."
        )
    logger.warning("%s; DISTILLER %r uses only its features", problem, cfg.DISTILLER)
