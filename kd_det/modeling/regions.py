"""The data that flow from the student's heads and the teacher to the KD terms.

Shape legend: N images, R proposals of the whole batch, K object classes of the student (class K is the background), C
columns of compared logits: the classes that both networks have, and the background last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from detectron2.structures import Boxes, Instances
from torch import Tensor

from kd_det.teacher.box_stages import BoundBoxStage
from kd_det.teacher.classes import ClassMap


@dataclass(frozen=True)
class StudentRegions:
    """What one box stage of the student predicted on its sampled proposals.

    Attributes:
        boxes: N ``Boxes``, R in all, in the coordinates of the padded input; the very boxes the head was run on.
        logits: (R, K+1) class logits, image after image, with their graph.
        labels: (R,) int64, 0..K.
        stage: the box stage, bound to the student's maps.
        stored_rows: (R,) int64: the rows of the batch's stored logits that the proposals carry, -1 for none; None
            without stored knowledge. See ``kd_det.modeling.stored``.
    """

    boxes: list[Boxes]
    logits: Tensor
    labels: Tensor
    stage: BoundBoxStage
    stored_rows: Tensor | None = None


@dataclass(frozen=True)
class SharedRegions:
    """The proposals of one box stage, seen by both networks.

    The stages let a term look at further boxes, such as parts of the proposals: ``student_stage.pool(boxes)`` and
    ``student_stage.logits(pooled)``, and the same of the teacher's. Their logits have the same C columns.

    Attributes:
        student_logits: (R, C), with their graph.
        teacher_logits: (R, C), float32, without a graph.
        labels: (R,) int64, 0..C-1.
        boxes: N ``Boxes``, R in all, in the coordinates of the padded input.
        student_stage, teacher_stage: the networks' box stages on their maps of this batch; the teacher's is None where
            its logits are stored ones.
        kept: (sampled proposals,) bool: which of those that the student sampled are the R above. The others belong to
            classes that the teacher lacks (``KD.TEACHER.CLASS_MAP``), or have no stored logits. None: all were kept.
        classes: what the C columns are, where they are not all of the student's classes.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor
    boxes: Sequence[Boxes]
    student_stage: BoundBoxStage
    teacher_stage: BoundBoxStage | None
    kept: Tensor | None = None
    classes: ClassMap | None = None


def on_shared_classes(regions: SharedRegions, classes: ClassMap) -> SharedRegions:
    """The regions on the paired classes alone, without the proposals whose class has no partner."""
    theirs = regions.teacher_stage
    shared = replace(
        regions,
        student_logits=classes.student_logits(regions.student_logits),
        teacher_logits=classes.teacher_logits(regions.teacher_logits),
        labels=classes.labels(regions.labels),
        classes=classes,
        student_stage=replace(regions.student_stage, classes=classes.student_logits),
        teacher_stage=None if theirs is None else replace(theirs, classes=classes.teacher_logits),
    )
    return selected(shared, shared.labels >= 0) if classes.partial else shared


def selected(regions: SharedRegions, kept: Tensor) -> SharedRegions:
    """The regions where ``kept`` (R,) bool is True."""
    by_image = kept.split([len(boxes) for boxes in regions.boxes])
    return replace(
        regions,
        student_logits=regions.student_logits[kept],
        teacher_logits=regions.teacher_logits[kept],
        labels=regions.labels[kept],
        boxes=[boxes[of_image] for boxes, of_image in zip(regions.boxes, by_image, strict=True)],
        kept=kept if regions.kept is None else regions.kept.masked_scatter(regions.kept, kept),
    )


@dataclass(frozen=True)
class DistillationInputs:
    """All that a KD term may look at in a training step.

    Attributes:
        regions: one entry for each box stage of the student (one for Faster R-CNN); empty if no term needs logits. With
            ``KD.TEACHER.STORED``, a term that does not need the teacher itself gets the proposals with stored logits.
        student_features, teacher_features: the backbones' maps, name to (N, D, H, W); the teacher's without a graph,
            and empty if no term needs the teacher itself.
        targets: the ground truth, one ``Instances`` per image with ``gt_boxes`` in the coordinates of the input.
        anchors: the student's RPN anchors, name of the map to H * W * A boxes (row, column, anchor); None unless a term
            sets ``needs_anchors``.
    """

    regions: Sequence[SharedRegions]
    student_features: Mapping[str, Tensor]
    teacher_features: Mapping[str, Tensor]
    targets: Sequence[Instances] = ()
    anchors: Mapping[str, Boxes] | None = None
