"""The frozen teacher: found, built, loaded, checked, and asked for features and box logits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_backbone, build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from kd_det.checkpoint import load_strictly
from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.teacher.box_stages import BoxStage, box_modules, box_stages
from kd_det.teacher.cells import Cells
from kd_det.teacher.classes import ClassMap, distilled_classes, shared_classes, unpaired_classes
from kd_det.teacher.config import teacher_config, zoo_names

logger = logging.getLogger(__name__)

TEACHER_HEADS = (StandardROIHeads, CascadeROIHeads, Res5ROIHeads)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenTeacher:
    """A trained R-CNN that answers questions and never changes.

    Deliberately no ``nn.Module``: as an attribute of the student it stays out of the student's parameters, checkpoints
    and ``train()``. It follows the student's device by itself.

    Args:
        model: the teacher, with the weights it was trained to.
        input_format: channel order the teacher was trained on, "BGR" or "RGB" (its own ``INPUT.FORMAT``).
        dtype: precision of the forward of backbone and box head. Normalisation of the image and ROI pooling stay
            float32 (the pooling kernels know no half precision on the CPU).
        class_map: which of its classes are the student's; None: all, in the same order.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        *,
        input_format: str,
        dtype: torch.dtype = torch.float32,
        class_map: ClassMap | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.input_format = input_format
        self.dtype = dtype
        self.class_map = class_map
        for part in (model.backbone, *box_modules(model.roi_heads)):
            part.to(dtype=dtype)
        stages = box_stages(model.roi_heads)
        self.stages = [replace(stage, head=_InPrecision(stage.head, dtype)) for stage in stages]
        # Frozen convolutions are faster on maps whose channels lie together; the values are the same.
        model.backbone.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def features(
        self, batched_inputs: list[dict[str, Any]], input_format: str, device: torch.device
    ) -> dict[str, Tensor]:
        """The teacher's feature maps of a batch.

        Args:
            batched_inputs: what Detectron2's data loader gives: "image", (3, H, W), raw values 0-255.
            input_format: channel order of these images (the student's ``INPUT.FORMAT``).
            device: where the student is; the teacher moves there if it is elsewhere.

        Returns:
            name to (N, D, H/stride, W/stride), float32.
        """
        if self.model.device != device:
            self.model.to(device)
        images = [
            {"image": reorder_channels(item["image"], input_format, self.input_format)} for item in batched_inputs
        ]
        tensor = self.model.preprocess_image(images).tensor
        with torch.autocast(tensor.device.type, enabled=False):
            maps = self.model.backbone(tensor.to(dtype=self.dtype, memory_format=torch.channels_last))
        return {name: value.float() for name, value in maps.items()}

    @torch.no_grad()
    def box_logits(self, features: dict[str, Tensor], boxes: list[Boxes], *, stage: int = 0) -> Tensor:
        """The class logits of the teacher's box head on given boxes.

        Args:
            features: what ``features`` returned.
            boxes: N ``Boxes``, R boxes in all, in the coordinates of the network's input.
            stage: whose proposals the boxes are, 0 for the RPN's. A Cascade teacher answers with its head of that
                stage, or its last if it has fewer; any other teacher has one head.

        Returns:
            (R, K+1), float32; the background last.
        """
        head = self._stage(stage)
        with torch.autocast(self.model.device.type, enabled=False):
            return head.logits(features, boxes).float()

    @torch.no_grad()
    def cell_logits(
        self, features: dict[str, Tensor], boxes: list[Boxes], cells: Cells, *, stage: int = 0
    ) -> Tensor:
        """The class logits of the boxes' M cells, (R, K+1, M), float32; arguments as for ``box_logits``."""
        head = self._stage(stage)
        with torch.autocast(self.model.device.type, enabled=False):
            return head.cell_logits(features, boxes, cells).float()

    def _stage(self, number: int) -> BoxStage:
        return self.stages[min(number, len(self.stages) - 1)]


@dataclass(frozen=True)
class _InPrecision:
    """A box head that takes pooled regions of any precision. A class, so that a teacher can be copied and pickled."""

    head: Callable[[Tensor], Tensor]
    dtype: torch.dtype

    def __call__(self, pooled: Tensor) -> Tensor:
        return self.head(pooled.to(self.dtype))


def reorder_channels(image: Tensor, given: str, wanted: str) -> Tensor:
    """``image`` (3, H, W) with its channels in the ``wanted`` order: "BGR" and "RGB" are each other reversed."""
    return image if given == wanted else image.flip(0)


def load_teacher(cfg: CfgNode, *, needs_logits: bool = True) -> FrozenTeacher:
    """Builds the teacher that ``cfg.KD.TEACHER`` names, on ``cfg.MODEL.DEVICE``, with every one of its weights.

    Leaves the random number generators as they were: a student trains alike with and without a teacher beside it.
    Logs which classes are distilled.

    Args:
        cfg: the student's configuration.
        needs_logits: whether its class logits will be asked for. If not, its classes may be any.

    Raises:
        SetupError: the configuration or the weights are not found, unreadable or incomplete; the teacher has other
            classes than the student, another kind of heads, or an image format that cannot be had from the student's.
    """
    teacher_cfg = teacher_config(cfg)
    check_image_formats(cfg, teacher_cfg)
    classes = shared_classes(cfg, teacher_cfg) if needs_logits else None
    logger.info(distilled_classes(cfg, teacher_cfg, classes) if needs_logits else unpaired_classes(cfg, teacher_cfg))
    with torch.random.fork_rng(devices=[]):  # Detectron2 initialises on the CPU
        model = build_model(teacher_cfg)
    check_heads(model, cfg.KD.TEACHER.CONFIG_FILE)
    load_strictly(model, teacher_cfg.MODEL.WEIGHTS, "KD.TEACHER.WEIGHTS")
    return FrozenTeacher(model, input_format=teacher_cfg.INPUT.FORMAT, dtype=_dtype(cfg), class_map=classes)


def teacher_maps(cfg: CfgNode) -> dict[str, ShapeSpec]:
    """Name to channels and stride of the maps that the teacher's backbone gives; builds nothing that takes memory.

    Raises:
        SetupError: the teacher's configuration is not found or not valid.
    """
    with torch.device("meta"):
        return build_backbone(teacher_config(cfg)).output_shape()


def check_image_formats(cfg: CfgNode, teacher_cfg: CfgNode) -> None:
    """Raises ``SetupError`` where the student's images cannot be turned into the teacher's."""
    formats = {cfg.INPUT.FORMAT, teacher_cfg.INPUT.FORMAT}
    if len(formats) > 1 and formats != {"BGR", "RGB"}:
        raise SetupError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r} for the student and {teacher_cfg.INPUT.FORMAT!r} for the teacher; "
            "only BGR and RGB can be turned into each other. Set the student's to the teacher's."
        )


def check_heads(model: nn.Module, config_file: str) -> None:
    """Raises ``SetupError`` unless ``model`` is an R-CNN whose box logits are a softmax's over K + 1 classes."""
    heads = getattr(model, "roi_heads", None)
    if not isinstance(model, GeneralizedRCNN) or type(heads) not in TEACHER_HEADS:
        kind = type(model if heads is None else heads).__name__
        raise SetupError(
            f"KD.TEACHER.CONFIG_FILE {config_file!r} is a {kind}; a teacher must be a GeneralizedRCNN "
            f"with one of {', '.join(kind.__name__ for kind in TEACHER_HEADS)}."
        )
    if getattr(box_stages(heads)[0].predictor, "use_sigmoid_ce", False):
        raise SetupError(
            f"KD.TEACHER.CONFIG_FILE {config_file!r} has MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True: its logits are no "
            "softmax's, and the KD terms compare softmaxes. Take a teacher trained with cross-entropy."
        )


def zoo_teachers() -> list[str]:
    """The names of the model zoo's configurations that have published weights and can be ``KD.TEACHER.CONFIG_FILE``."""
    return sorted(name for name in zoo_names() if _has_weights(name) and _can_teach(name))


def _has_weights(name: str) -> bool:
    try:
        return bool(model_zoo.get_checkpoint_url(name))
    except RuntimeError:
        return False


def _can_teach(name: str) -> bool:
    model = load_config(model_zoo.get_config_file(name)).MODEL
    architecture = META_ARCH_REGISTRY.get(model.META_ARCHITECTURE)
    heads = ROI_HEADS_REGISTRY.get(model.ROI_HEADS.NAME)
    return issubclass(architecture, GeneralizedRCNN) and heads in TEACHER_HEADS


def _dtype(cfg: CfgNode) -> torch.dtype:
    name = cfg.KD.TEACHER.DTYPE
    if name not in DTYPES:
        raise SetupError(f"KD.TEACHER.DTYPE is {name!r}; it must be one of {', '.join(DTYPES)}.")
    return DTYPES[name]
