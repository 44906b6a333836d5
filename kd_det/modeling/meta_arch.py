"""The distilling detector: an R-CNN student under a frozen teacher that looks at the same proposals."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from kd_det.common.errors import SetupError
from kd_det.common.nonfinite import check_finite, naming_the_batch
from kd_det.config import PLAIN_ROI_HEADS
from kd_det.modeling.balance import BalanceWatch
from kd_det.modeling.drawing import draw_teacher_and_student
from kd_det.modeling.regions import DistillationInputs, SharedRegions, StudentRegions, on_shared_classes
from kd_det.modeling.terms import KDTerm, Maps, build_terms
from kd_det.teacher.cells import Cells
from kd_det.teacher.classes import class_names
from kd_det.teacher.frozen import FrozenTeacher, load_teacher, teacher_maps

TERMS_PREFIX = "terms."


@META_ARCH_REGISTRY.register()
class DistillRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` whose training losses include KD terms; at test time it is a ``GeneralizedRCNN``.

    The teacher is loaded on the first training step, or before by ``load_teacher()``; evaluation never needs it. The
    state dict holds the student's entries and no other: the teacher is no submodule, and what the terms learn is
    ``terms``'s own state.

    Args:
        terms: KD terms by name. None: the plain student.
        teacher: makes the teacher; called once, and only if there are terms.
        class_names: the K classes' names, for pictures; None: their numbers.
        kwargs: as ``GeneralizedRCNN``; with terms, ``roi_heads`` must have ``forward_with_regions``.
    """

    @configurable
    def __init__(
        self,
        *,
        terms: Mapping[str, KDTerm],
        teacher: Callable[[], FrozenTeacher],
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.class_names = class_names
        self.terms = nn.ModuleDict(terms)
        self._balance = BalanceWatch({name: _weight(term) for name, term in terms.items()})
        self._make_teacher = teacher
        self.teacher: FrozenTeacher | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if cfg.KD.TERMS:
            _check_heads(cfg)
        cfg = cfg.clone()
        if not comm.is_main_process():  # which alone writes pictures: another's event storage would keep them for ever
            cfg.defrost()
            cfg.VIS_PERIOD = 0
        parts = super().from_config(cfg)
        terms = build_terms(cfg, Maps(parts["backbone"].output_shape(), partial(teacher_maps, cfg)))
        _check_cells(terms)
        names = class_names(cfg)
        names = names if names and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES else None
        needs_logits = any(term.needs_logits for term in terms.values())
        teacher = partial(load_teacher, cfg, needs_logits=needs_logits)
        return {**parts, "terms": terms, "teacher": teacher, "class_names": names}

    def load_teacher(self) -> None:
        """Loads the teacher if there are terms and it is not there yet.

        Raises:
            SetupError: see ``kd_det.teacher.frozen.load_teacher``.
        """
        if self.terms and self.teacher is None:
            self.teacher = self._make_teacher()

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As ``GeneralizedRCNN.forward``; in training the losses of the KD terms stand beside the detector's.

        Raises:
            NonFiniteLossError: a loss is nan or infinite.
        """
        if not self.training:
            return self.inference(batched_inputs)
        where = partial(_where, batched_inputs)
        with naming_the_batch(where, self.device):
            own, of_terms = self._distill(batched_inputs) if self.terms else (super().forward(batched_inputs), {})
        losses = dict(own)
        for part in of_terms.values():
            losses.update(part)
        check_finite(losses, where)
        if of_terms:
            self._balance.note(own, of_terms)
        return losses

    def _distill(self, batched_inputs: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The detector's own losses, and those of each term."""
        self.load_teacher()
        # The teacher first: its maps are small, and what it allocates on the way is free again before the student's
        # activations pile up.
        teacher_features = self.teacher.features(batched_inputs, self.input_format, self.device)

        images = self.preprocess_image(batched_inputs)
        targets = [item["instances"].to(self.device) for item in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self._proposals(images, features, batched_inputs, targets)
        _, head_losses, regions = self.roi_heads.forward_with_regions(
            images, features, proposals, targets, self._cells()
        )
        shared = self._shared(regions, teacher_features)
        self._visualize(batched_inputs, proposals, regions, shared)

        inputs = DistillationInputs(shared, features, teacher_features, targets, self._anchors(features))
        losses.update(head_losses)
        return losses, {name: term(inputs) for name, term in self.terms.items()}

    def _proposals(
        self, images: Any, features: dict[str, Tensor], batched_inputs: list[dict[str, Any]], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if self.proposal_generator is None:
            return [item["proposals"].to(self.device) for item in batched_inputs], {}
        return self.proposal_generator(images, features, targets)

    def _cells(self) -> Cells | None:
        return next((term.cells for term in self.terms.values() if term.cells is not None), None)

    def _anchors(self, features: dict[str, Tensor]) -> dict[str, Boxes] | None:
        if not any(term.needs_anchors for term in self.terms.values()):
            return None
        names = self.proposal_generator.in_features
        anchors = self.proposal_generator.anchor_generator([features[name] for name in names])
        return dict(zip(names, anchors, strict=True))

    def _shared(self, regions: list[StudentRegions], teacher_features: dict[str, Tensor]) -> list[SharedRegions]:
        if not any(term.needs_logits for term in self.terms.values()):
            return []
        return [self._share(stage, number, teacher_features) for number, stage in enumerate(regions)]

    def _share(self, ours: StudentRegions, number: int, teacher_features: dict[str, Tensor]) -> SharedRegions:
        logits = self.teacher.box_logits(teacher_features, ours.boxes, stage=number)
        shared = SharedRegions(ours.logits, logits, ours.labels)
        if ours.cell_rows is not None:
            cells = self.teacher.cell_logits(teacher_features, ours.cell_boxes, self._cells(), stage=number)
            shared = replace(
                shared, cell_rows=ours.cell_rows, student_cells=ours.cell_logits, teacher_cells=cells
            )
        return shared if self.teacher.class_map is None else on_shared_classes(shared, self.teacher.class_map)

    def _visualize(
        self,
        batched_inputs: list[dict[str, Any]],
        proposals: list[Instances],
        regions: list[StudentRegions],
        shared: list[SharedRegions],
    ) -> None:
        if self.vis_period <= 0 or get_event_storage().iter % self.vis_period:
            return
        self.visualize_training(batched_inputs, proposals)
        if shared:
            image = convert_image_to_rgb(batched_inputs[0]["image"].permute(1, 2, 0), self.input_format)
            picture = draw_teacher_and_student(
                image, regions[0], shared[0], self.teacher.class_map, self.class_names
            )
            get_event_storage().put_image("teacher and student", picture)
        # Figures refer to themselves. Left to Python's own time, dozens of them, several MiB each, wait to be freed.
        gc.collect()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The student's entries, as those of the plain ``GeneralizedRCNN``."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "") + TERMS_PREFIX
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads the student's entries; what the terms hold stays as it is."""
        kept = {TERMS_PREFIX + name: value for name, value in self.terms.state_dict().items()}
        return super().load_state_dict({**kept, **state_dict}, *args, **kwargs)


def _where(batched_inputs: list[dict[str, Any]]) -> str:
    images = [str(item.get("file_name", item.get("image_id", "unnamed"))) for item in batched_inputs]
    return f"at iteration {get_event_storage().iter} on the images {', '.join(images)}"


def _weight(term: KDTerm) -> float | None:
    weight = getattr(term, "weight", None)
    return weight if isinstance(weight, (int, float)) else None


def _check_cells(terms: Mapping[str, KDTerm]) -> None:
    asked = {name: term.cells for name, term in terms.items() if term.cells is not None}
    if len(set(asked.values())) > 1:
        raise SetupError(f"KD.TERMS: {' and '.join(asked)} ask for different cells of the proposals; name one of them.")


def _check_heads(cfg: CfgNode) -> None:
    name = cfg.MODEL.ROI_HEADS.NAME
    if name not in PLAIN_ROI_HEADS:
        raise SetupError(
            f"MODEL.ROI_HEADS.NAME is {name!r}, which cannot hand its box logits to the KD terms {list(cfg.KD.TERMS)}; "
            f"set it to one of: {', '.join(PLAIN_ROI_HEADS)}."
        )
    for key in ("USE_SIGMOID_CE", "USE_FED_LOSS"):
        if cfg.MODEL.ROI_BOX_HEAD.get(key, False):
            raise SetupError(
                f"MODEL.ROI_BOX_HEAD.{key} is True: the student's logits are no softmax's, and the KD terms "
                "compare softmaxes. Set it to False."
            )
