"""The frozen teacher: found by name, trained if asked to, checked, and run."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.checkpoint import STUDENT, load_strictly, read_student
from classification.composition import OUTPUT
from classification.data import Data
from classification.distillers import distiller_class
from classification.models import create_model
from classification.models.outputs import ModelOutput
from classification.models.protocol import ClassificationModel
from classification.models.resizing import resize_inputs
from classification.states import last_state
from kd_det.common.config_files import find_configs
from kd_det.common.errors import SetupError
from kd_det.common.processes import CommandError, forwarding_sigterm, stream
from kd_det.common.registry import import_options
from kd_det.common.signals import SIGNALS, StopRequested

logger = logging.getLogger(__name__)

WORDNET_NAME = re.compile(r"n\d{8}")  # of a class folder of ImageNet


class Teacher(nn.Module):
    """A model that is never trained: always in evaluation mode, without gradients, outside every checkpoint.

    Args:
        model: a model of ``classification.models``.
        data_mean, data_std: by which the images that come are normalised.
        own_mean, own_std: by which it was trained; None: the same.
    """

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
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(-1, 1, 1)
            for values in (data_mean, data_std, own_mean or data_mean, own_std or data_std)
        )
        self.renormalizes = not (torch.equal(mean, own_mean) and torch.equal(std, own_std))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> ModelOutput:
        """The model's answer to ``images`` (B, 3, H, W)."""
        if self.renormalizes:
            images = torch.addcmul(self.shift, images, self.scale)
        return self.model(images, return_features=True)


def build_teacher(cfg: CfgNode, data: Data, *, uses_logits: bool | None = None) -> Teacher:
    """The teacher that ``cfg.TEACHER`` describes.

    Args:
        uses_logits: whether its logits are used, not its features alone. None: as DISTILLER and
            DATA.CONFIDENCE_RANGE say.

    Raises:
        SetupError: it does not say which, there is no such model or file, the file is truncated or of another model,
            or its classes are not the data's.
    """
    node = cfg.TEACHER
    if not node.NAME:
        raise SetupError(f"DISTILLER {cfg.DISTILLER!r} needs a teacher; set TEACHER.NAME and TEACHER.WEIGHTS.")
    if bool(node.WEIGHTS) == node.PRETRAINED:
        raise SetupError(
            f"TEACHER.WEIGHTS {node.WEIGHTS!r} with TEACHER.PRETRAINED {node.PRETRAINED}: give one of the two, "
            "or the teacher would be random or have two sets of weights."
        )
    model = create_from(node, data)
    if node.PRETRAINED:
        if uses_logits is None:
            part = tuple(cfg.DATA.CONFIDENCE_RANGE) != (0.0, 1.0)
            uses_logits = part or distiller_class(cfg.DISTILLER).compares_logits
        _check_classifier(cfg, model, data, uses_logits)
        return Teacher(model, data.mean, data.std, model.input_mean, model.input_std)
    path = weights_path(node.WEIGHTS)
    content = read_student(path, "TEACHER.WEIGHTS")
    check_description(content, path, "TEACHER", node.NAME, data)
    load_strictly(model, path, content["model"], "TEACHER.WEIGHTS")
    return Teacher(model, data.mean, data.std)


def _check_classifier(cfg: CfgNode, model: ClassificationModel, data: Data, uses_logits: bool) -> None:
    """Raises ``SetupError`` where the logits of a library's model are used and are not of the data's classes."""
    imagenet = cfg.DATA.NAME == "imagenet" or all(WORDNET_NAME.fullmatch(name) for name in data.class_names)
    if model.has_own_classifier and imagenet:
        return
    name = f"TEACHER.PRETRAINED True: {cfg.TEACHER.NAME!r} was trained on other classes than the data's"
    if uses_logits:
        raise SetupError(
            f"{name}, so that its logits mean nothing here, and they are used (DISTILLER {cfg.DISTILLER!r}, "
            f"DATA.CONFIDENCE_RANGE {tuple(cfg.DATA.CONFIDENCE_RANGE)}). First train it on these data, with "
            "STUDENT.PRETRAINED True, and give its model.pth as TEACHER.WEIGHTS; or take a DISTILLER of features alone."
        )
    logger.warning("%s; DISTILLER %r uses its features alone", name, cfg.DISTILLER)


def create_from(node: CfgNode, data: Data) -> ClassificationModel:
    """The model that ``cfg.STUDENT`` or ``cfg.TEACHER`` names, for the data's classes; WEIGHTS are not loaded."""
    size = node.IMAGE_SIZE or data.image_size
    model = create_model(node.NAME, data.num_classes, pretrained=node.PRETRAINED, stem=node.STEM, image_size=size)
    resize_inputs(model, node.IMAGE_SIZE)
    return model


def check_description(content: dict, path: Path, section: str, name: str, data: Data) -> None:
    """Raises ``SetupError`` if a file read by ``read_student`` says that it is another model or has other classes."""
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


def weights_path(weights: str) -> Path:
    """A path as it is; the name of a run becomes output/NAME/model.pth."""
    return Path(weights) if Path(weights).suffix else Path(OUTPUT) / weights / STUDENT


def train_teacher(cfg: CfgNode) -> None:
    """Trains the teacher by TEACHER.CONFIG_FILES, unless its file is there.

    Runs as a command of its own; an interrupted one is resumed. A file that no run left is taken as it is.

    Raises:
        SetupError: TEACHER.WEIGHTS is not the name of a run, nothing says how to train it, or the training failed.
        StopRequested: the training was asked to stop; it has saved its state.
    """
    node = cfg.TEACHER
    path = weights_path(node.WEIGHTS)
    finished = (path.parent / "result.json").is_file() or last_state(path.parent) is None
    if path.is_file() and finished:
        return
    is_name = node.WEIGHTS and path == Path(OUTPUT) / node.WEIGHTS / STUDENT
    if not is_name or not node.CONFIG_FILES:
        raise SetupError(
            f"TEACHER.AUTO_TRAIN: TEACHER.WEIGHTS is {node.WEIGHTS!r} and TEACHER.CONFIG_FILES "
            f"{list(node.CONFIG_FILES)}. Give the first the name of a run, such as 'cifar100/vanilla_res32x4', and the "
            "second what trains it, ['cifar100/base.yaml']; or train the teacher yourself and give its model.pth."
        )
    files = list(find_configs(node.CONFIG_FILES, "TEACHER.CONFIG_FILES"))
    command = [sys.executable, "-m", "classification.train", "--resume", *import_options(), "--config-file", *files]
    command += ["STUDENT.NAME", node.NAME, "STUDENT.STEM", node.STEM, "STUDENT.IMAGE_SIZE", str(node.IMAGE_SIZE)]
    command += ["DATA.ROOT", cfg.DATA.ROOT, "OUTPUT_DIR", str(path.parent)]
    print(f"Training the teacher first: {node.WEIGHTS}, by {' '.join(files)}", flush=True)
    try:
        with forwarding_sigterm():
            stream(command, environment=_single_process(), progress=[""])
    except CommandError as error:
        for number in SIGNALS:
            if error.code in (-number, 128 + number):
                raise StopRequested(number) from error
        raise SetupError(
            f"TEACHER.AUTO_TRAIN: training by {files} ended with code {error.code}; its last lines say why."
        ) from error


def _single_process() -> dict[str, str]:
    """The environment without what tells a process that it is one of several."""
    several = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    several += ("ROLE_RANK", "ROLE_WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in several}
    return {name: value for name, value in kept.items() if not name.startswith(("ACCELERATE_", "TORCHELASTIC_"))}
