"""The distilling detector: an R-CNN student and a frozen teacher that looks at the same proposals."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, cast

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
from kd_det.data.pseudo_labels import class_thresholds
from kd_det.modeling.balance import BalanceWatch
from kd_det.modeling.drawing import draw_teacher_and_student
from kd_det.modeling.regions import DistillationInputs, SharedRegions, StudentRegions, on_shared_classes
from kd_det.modeling.stored import StoredProposals, joined, joined_with_rows, stored_limit, without_rows
from kd_det.modeling.terms import KDTerm, Maps, build_terms
from kd_det.modeling.unlabeled import Losses, UnlabeledImages
from kd_det.teacher.classes import checked_class_names
from kd_det.teacher.config import live_terms, rpn_user
from kd_det.teacher.frozen import FrozenTeacher, load_teacher, teacher_maps
from kd_det.teacher.stored import stored_classes

TERMS_PREFIX = "terms."


@META_ARCH_REGISTRY.register()
class DistillRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` whose training losses include KD terms; at test time it is a ``GeneralizedRCNN``.

    The teacher is loaded by ``load_teacher()``, at the latest in the first training step. Evaluation never needs it.
    The state dict has the student's entries only: the teacher is not a submodule, and what the terms learn is in the
    state dict of ``terms``.

    Args:
        terms: KD terms by name; empty: the plain student.
        teacher: makes the teacher; called once. None: nothing needs it.
        stored: the stored boxes and logits that join the proposals; None: there are none.
        teacher_proposals: whether the boxes that the teacher's RPN proposes join the student's proposals.
        unlabeled: how unlabelled images are trained on; None: there are none.
        class_names: the K classes' names, for pictures; None: their numbers.
        kwargs: as ``GeneralizedRCNN``; with any of the above, ``roi_heads`` must have ``forward_with_regions``.
    """

    @configurable
    def __init__(
        self,
        *,
        terms: Mapping[str, KDTerm],
        teacher: Callable[[], FrozenTeacher] | None,
        stored: StoredProposals | None = None,
        teacher_proposals: bool = False,
        unlabeled: UnlabeledImages | None = None,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.class_names = class_names
        self.terms = nn.ModuleDict(terms)
        self._balance = BalanceWatch({name: _weight(term) for name, term in terms.items()})
        self.stored = stored
        self.teacher_proposals = teacher_proposals
        self.unlabeled = unlabeled
        self._make_teacher = teacher
        self.teacher: FrozenTeacher | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        stored, unlabeled = bool(cfg.KD.TEACHER.STORED), None
        if cfg.KD.TERMS or stored or cfg.DATASETS.UNLABELED or cfg.KD.TEACHER.PROPOSALS:
            _check_heads(cfg)
        cfg = cfg.clone()
        if not comm.is_main_process():  # only it writes pictures; in others the event storage would keep them
            cfg.defrost()
            cfg.VIS_PERIOD = 0
        parts = super().from_config(cfg)
        terms = build_terms(cfg, Maps(parts["backbone"].output_shape(), partial(teacher_maps, cfg)))
        live, names = live_terms(cfg), checked_class_names(cfg)
        needs_logits = any(terms[name].needs_logits for name in live)
        if cfg.DATASETS.UNLABELED:
            thresholds = class_thresholds(cfg, names)  # with stored knowledge the data loader applies them
            unlabeled = UnlabeledImages(None if stored else thresholds, cfg.KD.UNLABELED.BOX_REGRESSION)
            needs_logits = needs_logits or not stored
        return {
            **parts,
            "terms": terms,
            "teacher": partial(load_teacher, cfg, needs_logits=needs_logits) if live or rpn_user(cfg) else None,
            "stored": StoredProposals(partial(stored_classes, cfg), stored_limit(cfg)) if stored else None,
            "teacher_proposals": cfg.KD.TEACHER.PROPOSALS,
            "unlabeled": unlabeled,
            "class_names": names,
        }

    def load_teacher(self) -> FrozenTeacher | None:
        """Loads the teacher if something needs it and it is not loaded yet.

        Returns:
            the teacher; None if nothing needs it.

        Raises:
            SetupError: see ``kd_det.teacher.frozen.load_teacher``.
        """
        if self._make_teacher is not None and self.teacher is None:
            self.teacher = self._make_teacher()
        return self.teacher

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As ``GeneralizedRCNN.forward``; in training it returns the losses of the KD terms beside the detector's.

        Raises:
            NonFiniteLossError: a loss is nan or infinite.
            SetupError: the teacher cannot be loaded, or a term returned something that is not named scalar losses.
        """
        if not self.training:
            return self.inference(batched_inputs)
        where = partial(_where, batched_inputs)
        with naming_the_batch(where, self.device):
            own, of_terms = self._losses(batched_inputs)
        losses = dict(own)
        for part in of_terms.values():
            losses.update(part)
        check_finite(losses, where)
        if of_terms:
            self._balance.note(own, of_terms)
        return losses

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> Losses:
        """The detector's own losses, and those of each term."""
        if self.unlabeled is not None:
            return self.unlabeled.losses(batched_inputs, self._distill)
        if self.terms or self.stored is not None or self.teacher_proposals:
            return self._distill(batched_inputs)
        return super().forward(batched_inputs), {}

    def _distill(self, batched_inputs: list[dict[str, Any]], *, unlabeled: UnlabeledImages | None = None) -> Losses:
        teacher = self.load_teacher()
        # The teacher first: its maps are small, and its intermediate results are freed before the student's
        # activations are allocated.
        teacher_features = {}
        if teacher is not None:
            teacher_features = teacher.features(batched_inputs, self.input_format, self.device)

        images = self.preprocess_image(batched_inputs)
        if unlabeled is not None:
            batched_inputs = unlabeled.labeled(batched_inputs, teacher, teacher_features, images)
        targets = [item["instances"].to(self.device) for item in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self._proposals(images, features, batched_inputs, targets)
        candidates, truth, stored = proposals, targets, []
        if teacher is not None and self.teacher_proposals:
            candidates = joined(candidates, teacher.proposals(teacher_features, images))
        if self.stored is not None:
            stored = self.stored.of_batch(batched_inputs, self.device)
            candidates, truth = joined_with_rows(candidates, stored), without_rows(targets)
        _, head_losses, regions = self.roi_heads.forward_with_regions(
            images, features, candidates, truth, boxes_only=unlabeled is not None
        )
        losses.update(head_losses)

        live: list[SharedRegions] = []  # with the live teacher's logits
        known: list[SharedRegions] = []  # with stored logits
        if teacher is not None and any(map(self._compares_live_logits, self._terms().values())):
            live = [_share(teacher, stage, number, teacher_features) for number, stage in enumerate(regions)]
        if self.stored is not None and any(map(self._compares_stored_logits, self._terms().values())):
            known = [self.stored.shared(stage, stored) for stage in regions]
        self._visualize(batched_inputs, proposals, live or known)

        inputs = DistillationInputs(live, features, teacher_features, targets, self._anchors(features))
        of_terms: dict[str, dict[str, Tensor]] = {}
        for name, term in self._terms().items():
            given = replace(inputs, regions=known) if self._compares_stored_logits(term) else inputs
            of_terms[name] = _checked(name, term(given), taken={*losses, *chain.from_iterable(of_terms.values())})
        return losses, of_terms

    def _compares_stored_logits(self, term: KDTerm) -> bool:
        return term.needs_logits and self.stored is not None and not term.needs_teacher

    def _compares_live_logits(self, term: KDTerm) -> bool:
        return term.needs_logits and not self._compares_stored_logits(term)

    def _terms(self) -> dict[str, KDTerm]:
        return cast("dict[str, KDTerm]", dict(self.terms.items()))

    def _proposals(
        self, images: Any, features: dict[str, Tensor], batched_inputs: list[dict[str, Any]], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if self.proposal_generator is None:
            return [item["proposals"].to(self.device) for item in batched_inputs], {}
        return self.proposal_generator(images, features, targets)

    def _anchors(self, features: dict[str, Tensor]) -> dict[str, Boxes] | None:
        if not any(term.needs_anchors for term in self._terms().values()):
            return None
        names = self.proposal_generator.in_features
        anchors = self.proposal_generator.anchor_generator([features[name] for name in names])
        return dict(zip(names, anchors, strict=True))

    def _visualize(
        self,
        batched_inputs: list[dict[str, Any]],
        proposals: list[Instances],
        shared: list[SharedRegions],
    ) -> None:
        if self.vis_period <= 0 or get_event_storage().iter % self.vis_period:
            return
        self.visualize_training(batched_inputs, proposals)
        if shared:
            image = convert_image_to_rgb(batched_inputs[0]["image"].permute(1, 2, 0), self.input_format)
            picture = draw_teacher_and_student(image, shared[0], self.class_names)
            get_event_storage().put_image("teacher and student", picture)
        # Figures are reference cycles of several MiB each; Python would let dozens of them pile up.
        gc.collect()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The student's entries only, as of a plain ``GeneralizedRCNN``."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "") + TERMS_PREFIX
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads the student's entries; the terms are unchanged."""
        kept = {TERMS_PREFIX + name: value for name, value in self.terms.state_dict().items()}
        return super().load_state_dict({**kept, **state_dict}, *args, **kwargs)


def _share(
    teacher: FrozenTeacher, ours: StudentRegions, number: int, teacher_features: dict[str, Tensor]
) -> SharedRegions:
    """The proposals of the student's stage ``number``, as both networks see them."""
    logits = teacher.box_logits(teacher_features, ours.boxes, stage=number)
    stage = teacher.stage(teacher_features, number)
    shared = SharedRegions(ours.logits, logits, ours.labels, ours.boxes, ours.stage, stage)
    return shared if teacher.class_map is None else on_shared_classes(shared, teacher.class_map)


def _checked(term: str, losses: Any, taken: Collection[str]) -> dict[str, Tensor]:
    """What a term returned, if it is scalar losses under names that no other loss has."""
    if not isinstance(losses, Mapping):
        raise SetupError(
            f"KD.TERMS: the term {term!r} returned {_kind(losses)}. Its forward must return a dict of scalar losses, "
            f"such as {{'loss_{term}': loss}}."
        )
    for name, value in losses.items():
        if not isinstance(name, str) or not name.startswith("loss_"):
            raise SetupError(
                f"KD.TERMS: the term {term!r} returned a loss named {name!r}. The name must start with 'loss_', such "
                f"as 'loss_{term}'."
            )
        if not isinstance(value, Tensor) or value.shape != ():
            raise SetupError(
                f"KD.TERMS: the term {term!r} returned {_kind(value)} as {name!r}. It must be a scalar tensor: reduce "
                "it, for instance with .mean()."
            )
        if name in taken:
            raise SetupError(f"KD.TERMS: the term {term!r} returned {name!r}, but there is such a loss; rename it.")
    return dict(losses)


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _where(batched_inputs: list[dict[str, Any]]) -> str:
    images = [str(item.get("file_name", item.get("image_id", "unnamed"))) for item in batched_inputs]
    return f"at iteration {get_event_storage().iter} on the images {', '.join(images)}"


def _weight(term: KDTerm) -> float | None:
    weight = getattr(term, "weight", None)
    return weight if isinstance(weight, (int, float)) else None


def _check_heads(cfg: CfgNode) -> None:
    name = cfg.MODEL.ROI_HEADS.NAME
    if name not in PLAIN_ROI_HEADS:
        raise SetupError(
            f"MODEL.ROI_HEADS.NAME is {name!r}, which does not give its box logits to the KD terms "
            f"{list(cfg.KD.TERMS)}, nor take a teacher's boxes; set it to one of: {', '.join(PLAIN_ROI_HEADS)}."
        )
    for key in ("USE_SIGMOID_CE", "USE_FED_LOSS"):
        if cfg.MODEL.ROI_BOX_HEAD.get(key, False):
            raise SetupError(
                f"MODEL.ROI_BOX_HEAD.{key} is True: the KD terms compare softmaxes, but the student's "
                "logits are for sigmoids. Set it to False."
            )
