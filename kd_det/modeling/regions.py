"""What flows from the student's heads and the teacher to the KD terms.

Shape legend: N images, R sampled proposals of the whole batch, S of them with cells, M cells of a proposal, K object
classes; class K is the background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from detectron2.structures import Boxes, Instances
from torch import Tensor

from kd_det.teacher.classes import ClassMap


@dataclass(frozen=True)
class StudentRegions:
    """What one stage of the student's box head predicted on the proposals it was given.

    Attributes:
        boxes: N ``Boxes``, R boxes in all, in the coordinates of the padded input; the very boxes the head was run on.
        logits: (R, K+1) class logits, image after image, with their graph.
        labels: (R,) int64, 0..K.
        cell_boxes: N ``Boxes``, S in all: those whose cells a term asked for.
        cell_rows: (S,) int64, which of the R they are.
        cell_logits: (S, K+1, M) logits of their cells with their graph.
    """

    boxes: list[Boxes]
    logits: Tensor
    labels: Tensor
    cell_boxes: list[Boxes] | None = None
    cell_rows: Tensor | None = None
    cell_logits: Tensor | None = None


@dataclass(frozen=True)
class SharedRegions:
    """One set of proposals seen by both networks, on the classes that both have, the background last.

    Attributes:
        student_logits, teacher_logits: (R, K+1); the teacher's float32, without a graph.
        labels: (R,) int64, 0..K.
        cell_rows: (S,) int64, the proposals whose cells a term asked for.
        student_cells, teacher_cells: (S, K+1, M), their logits.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor
    cell_rows: Tensor | None = None
    student_cells: Tensor | None = None
    teacher_cells: Tensor | None = None


def on_shared_classes(regions: SharedRegions, classes: ClassMap) -> SharedRegions:
    """The regions on the paired classes alone; a proposal labelled with a class without partner is left out."""
    labels = classes.labels(regions.labels)
    shared = SharedRegions(
        classes.student_logits(regions.student_logits), classes.teacher_logits(regions.teacher_logits), labels
    )
    if regions.cell_rows is not None:
        cells = classes.student_logits(regions.student_cells), classes.teacher_logits(regions.teacher_cells)
        shared = replace(shared, cell_rows=regions.cell_rows, student_cells=cells[0], teacher_cells=cells[1])
    return _without(shared, labels < 0) if classes.partial else shared


def _without(regions: SharedRegions, left_out: Tensor) -> SharedRegions:
    """The regions less those where ``left_out`` (R,) is True."""
    kept = ~left_out
    whole = (regions.student_logits[kept], regions.teacher_logits[kept], regions.labels[kept])
    if regions.cell_rows is None:
        return SharedRegions(*whole)
    kept_cells = kept[regions.cell_rows]
    rows = (kept.cumsum(0) - 1)[regions.cell_rows[kept_cells]]
    return SharedRegions(*whole, rows, regions.student_cells[kept_cells], regions.teacher_cells[kept_cells])


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
