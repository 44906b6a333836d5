"""What one or several teachers know about an image: their boxes, and their class log-probabilities on these.

Shape legend: H, W of an image in its own pixels; h, w of a view, which is the image resized and perhaps mirrored; N
boxes; K classes of the student.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, ImageList
from torch import Tensor

from kd_det.checkpoint import local_path
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.data.knowledge_format import DETECTION, GROUND_TRUTH, PROPOSAL, StoredImage, sha256_of
from kd_det.teacher.classes import ClassMap
from kd_det.teacher.config import teacher_config
from kd_det.teacher.frozen import FrozenTeacher, load_teacher

FLIP = "flip"
LEAST_SIDE = 16  # pixels: of a view
_KINDS = (GROUND_TRUTH, DETECTION, PROPOSAL)


class View(NamedTuple):
    """How a teacher looks at an image.

    Attributes:
        short: length of the resized image's short side; None: the teacher's own ``INPUT.MIN_SIZE_TEST``.
        flipped: mirrored from left to right.
    """

    short: int | None
    flipped: bool


class Candidates(NamedTuple):
    """Boxes that a teacher found, in the image's own pixels.

    Attributes:
        detections: (D, 4), its final detections, best first.
        scores: (D,) of these.
        classes: (D,) of these, the student's indices.
        proposals: (P, 4), its RPN's boxes after NMS, best first.
    """

    detections: Tensor
    scores: Tensor
    classes: Tensor
    proposals: Tensor


class Seen(NamedTuple):
    """A teacher's maps of a view, and the view's (h, w)."""

    features: dict[str, Tensor]
    size: tuple[int, ...]


def views_of(values: Sequence[str]) -> tuple[View, ...]:
    """The views that ``--views`` names: short sides, and "flip" for a mirrored one of each.

    Raises:
        SetupError: a value is neither, or is listed twice.
    """
    sizes = [value for value in values if value != FLIP]
    if len({*values}) < len(values):
        raise SetupError(f"--views: {' '.join(values)!r} has a value twice; each would count twice in the average.")
    for value in sizes:
        if not value.isdecimal() or int(value) < LEAST_SIDE:
            hint = did_you_mean(value, [FLIP])
            raise SetupError(f"--views: {value!r} is neither {FLIP!r} nor a short side of {LEAST_SIDE} or more.{hint}")
    scales: list[int | None] = [int(value) for value in sizes] or [None]
    return tuple(View(size, flipped) for flipped in (False, True)[: 1 + (FLIP in values)] for size in scales)


@dataclass(frozen=True)
class LoadedTeacher:
    """A loaded teacher with its settings for test images.

    Attributes:
        frozen: the teacher, in float32.
        short, longest: its ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST``.
        nms: its RPN's and its detections' IoU thresholds, to merge its boxes with another teacher's.
        about: JSON that says which teacher it is, with the sha256 of its weights.
    """

    frozen: FrozenTeacher
    short: int
    longest: int
    nms: tuple[float, float]
    about: dict[str, Any]

    def view(self, pixels: np.ndarray, view: View) -> np.ndarray:
        """(H, W, C) to (h, w, C), resized as at test time."""
        short, longest = self.short, self.longest
        if view.short is not None:
            short, longest = view.short, round(longest * view.short / short) if short else longest
        seen = T.ResizeShortestEdge([short, short], longest).get_transform(pixels).apply_image(pixels)
        return seen[:, ::-1] if view.flipped else seen

    def features(self, pixels: np.ndarray, input_format: str, device: torch.device) -> dict[str, Tensor]:
        """The maps of a view (h, w, C)."""
        image = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return self.frozen.features([{"image": image}], input_format, device)

    def candidates(self, features: dict[str, Tensor], seen: Sequence[int], own: Sequence[int]) -> Candidates:
        """The boxes that it finds.

        Args:
            features: of a view that is not mirrored.
            seen, own: (h, w) of the view and (H, W) of the image.
        """
        model = self.frozen.model
        images = ImageList(torch.empty(0), [(seen[0], seen[1])])  # only the sizes are read
        proposals, _ = model.proposal_generator(images, features, None)
        (found,), _ = model.roi_heads(images, features, proposals, None)
        pairs = self.frozen.class_map
        classes = found.pred_classes if pairs is None else pairs.student_classes_of(found.pred_classes)
        detections = _rescaled(found.pred_boxes.tensor, seen, own)
        kept = Boxes(detections).nonempty() & (classes >= 0)
        inside = _rescaled(proposals[0].proposal_boxes.tensor, seen, own)
        return Candidates(detections[kept], found.scores[kept], classes[kept], inside[Boxes(inside).nonempty()])


def load_teacher_for_storing(cfg: CfgNode) -> LoadedTeacher:
    """The teacher that ``cfg.KD.TEACHER`` names, in float32, for storing what it knows.

    Raises:
        SetupError: see ``load_teacher``; or it has no RPN.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.KD.TEACHER.DTYPE = "float32"
    theirs = teacher_config(cfg)
    frozen = load_teacher(cfg)
    if frozen.model.proposal_generator is None:
        raise SetupError(
            f"KD.TEACHER.CONFIG_FILE {cfg.KD.TEACHER.CONFIG_FILE!r} has MODEL.PROPOSAL_GENERATOR.NAME "
            f"{theirs.MODEL.PROPOSAL_GENERATOR.NAME!r}: it finds no boxes by itself. Take a teacher with an RPN."
        )
    frozen.model.roi_heads.mask_on = frozen.model.roi_heads.keypoint_on = False  # only boxes are stored
    weights = local_path(theirs.MODEL.WEIGHTS, "KD.TEACHER.WEIGHTS")
    about = {
        "config": cfg.KD.TEACHER.CONFIG_FILE,
        "config_sha256": _settings_sha256(theirs),
        "weights": os.path.basename(weights),
        "sha256": sha256_of(weights),
        "opts": [str(value) for value in cfg.KD.TEACHER.OPTS],
        "class_map": list(cfg.KD.TEACHER.CLASS_MAP),
    }
    nms = theirs.MODEL.RPN.NMS_THRESH, theirs.MODEL.ROI_HEADS.NMS_THRESH_TEST
    return LoadedTeacher(frozen, theirs.INPUT.MIN_SIZE_TEST, theirs.INPUT.MAX_SIZE_TEST, nms, about)


class TeacherEnsemble:
    """Teachers whose class probabilities are averaged over all of them and their views, on the same boxes.

    The boxes are those that each teacher finds in its first view.

    Args:
        teachers: at least one; all must know the same of the student's classes.
        views: at least one, the first not mirrored.
        boxes: how many boxes of an image are kept beside the ground truth's.
        classes: the student's number of classes.
        input_format: channel order of the images that ``look`` gets.
        device: where to compute.

    Raises:
        SetupError: the teachers know different classes.
    """

    def __init__(
        self,
        teachers: Sequence[LoadedTeacher],
        views: Sequence[View],
        *,
        boxes: int,
        classes: int,
        input_format: str,
        device: torch.device,
    ) -> None:
        self.teachers, self.views, self.boxes = teachers, views, boxes
        self.input_format, self.device = input_format, device
        known = [_shared(teacher.frozen.class_map) for teacher in teachers]
        for teacher, shared in zip(teachers, known, strict=True):
            if shared != known[0]:
                raise SetupError(
                    f"--teacher: {teachers[0].about['config']!r} knows {_counted(known[0], classes)} of the student's "
                    f"classes and {teacher.about['config']!r} {_counted(shared, classes)}; to be averaged they must "
                    "know the same ones. Give each a KD.TEACHER.CLASS_MAP with the same classes."
                )
        self.shared = known[0]

    @torch.no_grad()
    def look(self, pixels: np.ndarray, ground_truth: Tensor) -> StoredImage:
        """The boxes of an image, best first: the ground truth's, detections, proposals.

        Args:
            pixels: (H, W, C), as read, in ``input_format``.
            ground_truth: (G, 4) XYXY in its pixels.

        Raises:
            FloatingPointError: a teacher's logits are not finite.
        """
        own = pixels.shape[:2]
        first = [self._seen(teacher, pixels, self.views[0]) for teacher in self.teachers]
        found = [teacher.candidates(*seen, own) for teacher, seen in zip(self.teachers, first, strict=True)]
        detections, proposals = self._merged(found)
        parts = (ground_truth.to(self.device), detections[: self.boxes], proposals)
        boxes = torch.cat(parts)[: len(ground_truth) + self.boxes]
        kinds = torch.cat([torch.full((len(p),), kind) for p, kind in zip(parts, _KINDS, strict=True)])[: len(boxes)]
        logs = torch.stack(list(self._log_probabilities(pixels, boxes, first)))
        mean = logs.logsumexp(0) - math.log(len(logs))
        if mean.isnan().any():
            raise FloatingPointError("the teacher's logits are not finite")
        return StoredImage(boxes.float().cpu(), mean.cpu(), kinds.to(torch.uint8))

    def _log_probabilities(self, pixels: np.ndarray, boxes: Tensor, first: Sequence[Seen]) -> Iterator[Tensor]:
        """(N, K+1) of each teacher and view; ``first`` is what each teacher has seen in the first view."""
        for teacher, seen in zip(self.teachers, first, strict=True):
            for view in self.views:
                features, size = seen if view == self.views[0] else self._seen(teacher, pixels, view)
                there = _rescaled(boxes, pixels.shape[:2], size)
                if view.flipped:
                    left, top, right, bottom = there.unbind(1)
                    there = torch.stack([size[1] - right, top, size[1] - left, bottom], dim=1)
                logits = teacher.frozen.box_logits(features, [Boxes(there)])
                yield in_student_classes(logits, teacher.frozen.class_map)

    def _seen(self, teacher: LoadedTeacher, pixels: np.ndarray, view: View) -> Seen:
        image = teacher.view(pixels, view)
        return Seen(teacher.features(image, self.input_format, self.device), image.shape[:2])

    def _merged(self, found: Sequence[Candidates]) -> tuple[Tensor, Tensor]:
        """Detections by score and proposals by rank of all teachers; what several teachers found is kept once."""
        if len(found) == 1:
            return found[0].detections, found[0].proposals
        rpn, heads = self.teachers[0].nms
        boxes, scores, classes = (torch.cat(parts) for parts in list(zip(*found, strict=True))[:3])
        detections = boxes[batched_nms(boxes, scores, classes, heads)]
        ranked = [row for row in chain.from_iterable(zip_longest(*(f.proposals for f in found))) if row is not None]
        proposals = torch.stack(ranked) if ranked else boxes.new_zeros(0, 4)
        ranks = -torch.arange(len(proposals), device=boxes.device, dtype=torch.float32)
        return detections, proposals[batched_nms(proposals, ranks, torch.zeros_like(ranks), rpn)]


def in_student_classes(logits: Tensor, class_map: ClassMap | None) -> Tensor:
    """A teacher's logits (N, its K+1) as log-probabilities (N, K+1) over the student's classes.

    The classes that only one of the two has take no part in the softmax; the student's get minus infinity.
    """
    if class_map is None:
        return logits.log_softmax(1)
    known = class_map.teacher_logits(logits).log_softmax(1)
    columns = torch.tensor([*class_map.student, class_map.student_classes], device=logits.device)
    dense = logits.new_full((len(logits), class_map.student_classes + 1), -math.inf)
    return dense.index_copy(1, columns, known)


def _shared(class_map: ClassMap | None) -> tuple[int, ...] | None:
    return class_map.student if class_map is not None and class_map.partial else None


def _counted(shared: tuple[int, ...] | None, classes: int) -> str:
    return f"all {classes}" if shared is None else f"{len(shared)} ({', '.join(map(str, shared[:20]))})"


def _rescaled(boxes: Tensor, given: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Boxes of an image of size ``given`` (height, width) in one of size ``wanted``, clipped to it."""
    height, width = (new / old for old, new in zip(given, wanted, strict=True))
    scaled = Boxes(boxes * boxes.new_tensor([width, height, width, height]))
    scaled.clip((wanted[0], wanted[1]))
    return scaled.tensor


def _settings_sha256(cfg: CfgNode) -> str:
    """Of everything that decides a teacher's outputs, beside its weights."""
    settings = CfgNode({"MODEL": cfg.MODEL.clone(), "INPUT": cfg.INPUT.clone(), "TEST": cfg.TEST.clone()})
    settings.MODEL.WEIGHTS = settings.MODEL.DEVICE = ""
    return hashlib.sha256(settings.dump().encode()).hexdigest()
