"""The frozen teacher: how it is built, loaded and checked, and its features and box logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_backbone, build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from kd_det.checkpoint import load_strictly
from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.teacher.box_stages import BoundBoxStage, box_modules, box_stages
from kd_det.teacher.classes import ClassMap, distilled_classes, shared_classes, unpaired_classes
from kd_det.teacher.config import live_terms, rpn_user, teacher_config, zoo_names
from kd_det.teacher.precision import teacher_dtype

logger = logging.getLogger(__name__)

TEACHER_HEADS = (StandardROIHeads, CascadeROIHeads, Res5ROIHeads)


class FrozenTeacher:
    """A trained R-CNN that gives features and box logits, and never changes.

    It is not an ``nn.Module``, so that as an attribute of the student it is not part of the student's parameters,
    checkpoints and ``train()``. ``features`` moves it to the student's device.

    Args:
        model: the teacher, with the weights it was trained to.
        input_format: channel order the teacher was trained on, "BGR" or "RGB" (its own ``INPUT.FORMAT``).
        dtype: precision of backbone and box head. The normalisation of the image and ROI pooling stay float32 (the
            pooling kernels have no half precision on the CPU).
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
        own = box_stages(model.roi_heads)
        self.stages = [
            replace(stage, head=_Frozen(stage.head, dtype), predictor=_FrozenPredictor(stage.predictor, dtype))
            for stage in own
        ]
        self._layers: list[Any] = [stage.predictor for stage in own]
        # Frozen convolutions are faster in this memory format; the values are the same.
        model.backbone.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def features(
        self, batched_inputs: list[dict[str, Any]], input_format: str, device: torch.device
    ) -> dict[str, Tensor]:
        """The teacher's feature maps of a batch.

        Args:
            batched_inputs: from Detectron2's data loader; of each item "image" is read, (3, H, W), values 0-255.
            input_format: channel order of these images (the student's ``INPUT.FORMAT``).
            device: the student's; the teacher is moved there.

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

    def stage(self, features: Mapping[str, Tensor], number: int = 0) -> BoundBoxStage:
        """A box stage of the teacher on its maps; what it computes is float32 and has no graph.

        Args:
            features: what ``features`` returned.
            number: of the student's stage whose proposals are given, 0 for the RPN's. A Cascade teacher uses its stage
                of that number, or its last if it has fewer; any other teacher has one stage.
        """
        return self.stages[min(number, len(self.stages) - 1)].on(features)

    @torch.no_grad()
    def box_logits(self, features: Mapping[str, Tensor], boxes: list[Boxes], *, stage: int = 0) -> Tensor:
        """The class logits of the teacher's box head on given boxes.

        Args:
            features: what ``features`` returned.
            boxes: N ``Boxes``, R in all, in the coordinates of the network's padded input.
            stage: as ``number`` of ``stage``.

        Returns:
            (R, K+1), float32; the background last.
        """
        bound = self.stage(features, stage)
        return bound.logits(bound.pool(boxes))

    @torch.no_grad()
    def proposals(self, features: Mapping[str, Tensor], images: ImageList) -> list[Instances]:
        """The boxes that the teacher's RPN proposes, as at test time: its own MODEL.RPN.*_TOPK_TEST and NMS.

        Args:
            features: what ``features`` returned.
            images: the student's input; only the sizes are read.

        Returns:
            N ``Instances`` with ``proposal_boxes`` and ``objectness_logits``, the best first, float32.
        """
        with torch.autocast(images.tensor.device.type, enabled=False):
            found, _ = self.model.proposal_generator(images, dict(features), None)
        return found

    @torch.no_grad()
    def detections(self, features: Mapping[str, Tensor], proposals: Sequence[Instances]) -> list[Instances]:
        """The teacher's final detections, as at test time: its own score threshold, NMS and number.

        Args:
            features: what ``features`` returned.
            proposals: what ``proposals`` returned.

        Returns:
            N ``Instances`` with ``pred_boxes``, ``scores`` and ``pred_classes``, the best first. The classes are the
            student's; detections of classes without a partner are left out.
        """
        sizes = [each.image_size for each in proposals]
        boxes: Sequence[Tensor] = ()
        scores: list[Sequence[Tensor]] = []
        for stage, layers in zip(self.stages, self._layers, strict=True):
            if scores:
                proposals = self.model.roi_heads._create_proposals_from_boxes(boxes, sizes)
            bound = stage.on(features)
            predicted = bound.predictor(bound.head(bound.pool([each.proposal_boxes for each in proposals])))
            boxes = layers.predict_boxes(predicted, proposals)
            scores.append(layers.predict_probs(predicted, proposals))
        means = [torch.stack(of_image).mean(0) for of_image in zip(*scores, strict=True)]
        found, _ = fast_rcnn_inference(
            boxes, means, sizes, layers.test_score_thresh, layers.test_nms_thresh, layers.test_topk_per_image
        )
        if self.class_map is None:
            return found
        for each in found:
            each.pred_classes = self.class_map.student_classes_of(each.pred_classes)
        return [each[each.pred_classes >= 0] for each in found]


@dataclass(frozen=True)
class _Frozen:
    """A part of the box stage in the teacher's precision, without a graph and without the student's autocast.

    A class, so that a teacher can be copied and pickled.
    """

    part: Callable[[Tensor], Any]
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, given: Tensor) -> Any:
        with torch.autocast(given.device.type, enabled=False):
            return self.part(given.to(self.dtype))


@dataclass(frozen=True)
class _FrozenPredictor(_Frozen):
    def __call__(self, given: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().__call__(given)
        return logits.float(), deltas.float()


def reorder_channels(image: Tensor, given: str, wanted: str) -> Tensor:
    """``image`` (3, H, W) with its channels in the ``wanted`` order: "BGR" is "RGB" reversed."""
    return image if given == wanted else image.flip(0)


def load_teacher(cfg: CfgNode, *, needs_logits: bool = True) -> FrozenTeacher:
    """Builds the teacher that ``cfg.KD.TEACHER`` names on ``cfg.MODEL.DEVICE``, and loads all of its weights.

    Does not change the state of the random number generators, so that the student's training is the same with and
    without a teacher. Logs which classes are distilled, and the precision that ``KD.TEACHER.DTYPE`` auto chooses. With
    several processes, all of them must call this.

    Args:
        cfg: the student's configuration.
        needs_logits: whether its class logits will be used. If not, it may have any classes.

    Raises:
        SetupError: the configuration or the weights are not found, unreadable or incomplete; or the teacher's classes,
            heads or image format do not fit the student's.
    """
    teacher_cfg = teacher_config(cfg)
    check_image_formats(cfg, teacher_cfg)
    classes = shared_classes(cfg, teacher_cfg) if needs_logits else None
    if needs_logits:
        logger.info(distilled_classes(cfg, teacher_cfg, classes))
    else:
        logger.info(unpaired_classes(cfg, teacher_cfg, live_terms(cfg)))
    with torch.random.fork_rng(devices=[]):  # Detectron2 initialises on the CPU
        model = build_model(teacher_cfg)
    check_heads(model, cfg.KD.TEACHER.CONFIG_FILE, rpn_for=rpn_user(cfg))
    load_strictly(model, teacher_cfg.MODEL.WEIGHTS, "KD.TEACHER.WEIGHTS")
    dtype = teacher_dtype(cfg.KD.TEACHER.DTYPE, model.device)
    return FrozenTeacher(model, input_format=teacher_cfg.INPUT.FORMAT, dtype=dtype, class_map=classes)


def teacher_maps(cfg: CfgNode) -> dict[str, ShapeSpec]:
    """The maps of the teacher's backbone, name to channels and stride; allocates no memory for weights.

    Raises:
        SetupError: the teacher's configuration is not found or not valid.
    """
    with torch.device("meta"):
        return build_backbone(teacher_config(cfg)).output_shape()


def check_image_formats(cfg: CfgNode, teacher_cfg: CfgNode) -> None:
    """Raises ``SetupError`` if the student's images cannot be converted to the teacher's format."""
    formats = {cfg.INPUT.FORMAT, teacher_cfg.INPUT.FORMAT}
    if len(formats) > 1 and formats != {"BGR", "RGB"}:
        raise SetupError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r} for the student and {teacher_cfg.INPUT.FORMAT!r} for the teacher; "
            "only BGR and RGB can be converted into each other. Set the student's to the teacher's."
        )


def check_heads(model: nn.Module, config_file: str, *, rpn_for: str = "") -> None:
    """Checks the kind of a teacher.

    Args:
        model: the teacher.
        config_file: what named it, for the message.
        rpn_for: what its RPN will be used for, for the message; "": it will not.

    Raises:
        SetupError: it is not an R-CNN whose box logits are for a softmax over K + 1 classes, or has no RPN to propose.
    """
    heads = getattr(model, "roi_heads", None)
    if not isinstance(model, GeneralizedRCNN) or not isinstance(heads, nn.Module) or type(heads) not in TEACHER_HEADS:
        kind = type(model if heads is None else heads).__name__
        raise SetupError(
            f"KD.TEACHER.CONFIG_FILE {config_file!r} is a {kind}; a teacher must be a GeneralizedRCNN "
            f"with one of {', '.join(kind.__name__ for kind in TEACHER_HEADS)}."
        )
    if getattr(box_stages(heads)[0].predictor, "use_sigmoid_ce", False):
        raise SetupError(
            f"KD.TEACHER.CONFIG_FILE {config_file!r} has MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True: the KD terms "
            "compare softmaxes, but its logits are for sigmoids. Take a teacher trained with cross-entropy."
        )
    if rpn_for and model.proposal_generator is None:
        raise SetupError(
            f"{rpn_for}, but KD.TEACHER.CONFIG_FILE {config_file!r} has no RPN (MODEL.PROPOSAL_GENERATOR.NAME "
            "PrecomputedProposals). Take a teacher with an RPN, or change the first setting."
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
