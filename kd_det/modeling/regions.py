"""What flows from the student's heads and the teacher to the KD terms.

Shape legend: N images, R sampled proposals of the whole batch, K object classes; class K is the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.structures import Boxes
from torch import Tensor


@dataclass(frozen=True)
class StudentRegions:
    """What the student's box head predicted on the proposals it sampled.

    Attributes:
        boxes: N ``Boxes``, R boxes in all, in the coordinates of the padded input; the very boxes the head was run on.
        logits: (R, K+1) class logits, image after image, with their graph.
        labels: (R,) int64, 0..K.
    """

    boxes: list[Boxes]
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class SharedRegions:
    """One set of proposals seen by both networks: ``student_logits``, ``teacher_logits`` (R, K+1), ``labels`` (R,)."""

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class DistillationInputs:
    """All that a KD term may look at.

    Attributes:
        regions: one entry for each box stage of the student (one for Faster R-CNN); empty if no term needs logits.
        student_features, teacher_features: the backbones' maps, name to (N, D, H, W); the teacher's without a graph.
    """

    regions: Sequence[SharedRegions]
    student_features: dict[str, Tensor]
    teacher_features: dict[str, Tensor]
