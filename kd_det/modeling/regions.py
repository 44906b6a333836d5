"""What flows from the student's heads and the teacher to the KD terms.

Shape legend: N images, R sampled proposals of the whole batch, M cells of a proposal, K object classes; class K is the
background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from detectron2.structures import Boxes, Instances
from torch import Tensor

from kd_det.class_map import ClassMap


@dataclass(frozen=True)
class StudentRegions:
    """What one stage of the student's box head predicted on the proposals it was given.

    Attributes:
        boxes: N ``Boxes``, R boxes in all, in the coordinates of the padded input; the very boxes the head was run on.
        logits: (R, K+1) class logits, image after image, with their graph.
        labels: (R,) int64, 0..K.
        cell_logits: (R, K+1, M) logits of the proposals' cells with their graph, if a term asked for them.
    """

    boxes: list[Boxes]
    logits: Tensor
    labels: Tensor
    cell_logits: Tensor | None = None


@dataclass(frozen=True)
class SharedRegions:
    """One set of proposals seen by both networks, on the classes that both have, the background last.

    Attributes:
        student_logits, teacher_logits: (R, K+1); the teacher's float32, without a graph.
        labels: (R,) int64, 0..K.
        student_cells, teacher_cells: (R, K+1, M), if a term asked for them.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor
    student_cells: Tensor | None = None
    teacher_cells: Tensor | None = None


def on_shared_classes(regions: SharedRegions, classes: ClassMap) -> SharedRegions:
    """The regions on the paired classes alone; a proposal labelled with a class without partner is left out."""
    labels = classes.labels(regions.labels)
    shared = SharedRegions(
        classes.student_logits(regions.student_logits),
        classes.teacher_logits(regions.teacher_logits),
        labels,
        None if regions.student_cells is None else classes.student_logits(regions.student_cells),
        None if regions.teacher_cells is None else classes.teacher_logits(regions.teacher_cells),
    )
    if not classes.partial:
        return shared
    kept = labels >= 0
    parts = (getattr(shared, part.name) for part in fields(shared))
    return SharedRegions(*(None if part is None else part[kept] for part in parts))


@dataclass(frozen=True)
class DistillationInputs:
    """All that a KD term may look at.

    Attributes:
        regions: one entry for each box stage of the student (one for Faster R-CNN); empty if no term needs logits.
        student_features, teacher_features: the backbones' maps, name to (N, D, H, W); the teacher's without a graph.
        targets: the ground truth, one ``Instances`` an image with ``gt_boxes`` in the coordinates of the input.
        anchors: the student's RPN anchors, name of the map to H * W * A boxes (row, column, anchor), if a term asked
            for them.
    """

    regions: Sequence[SharedRegions]
    student_features: Mapping[str, Tensor]
    teacher_features: Mapping[str, Tensor]
    targets: Sequence[Instances] = ()
    anchors: Mapping[str, Boxes] | None = None
