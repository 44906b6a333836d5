"""Stored boxes beside the student's proposals, and the stored logits of those that were sampled.

A stored box becomes a proposal with the field ``stored_row``, (R,) int64: the row of its logits among those of the
batch, image after image, and -1 for every other proposal. Sampling and matching treat all proposals alike, and the rows
go with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from kd_det.common.errors import SetupError
from kd_det.data.stored import LOGITS, STORED
from kd_det.modeling.regions import SharedRegions, StudentRegions, on_shared_classes, selected
from kd_det.teacher.classes import ClassMap

ROW = "stored_row"


@dataclass(frozen=True)
class StoredProposals:
    """The stored knowledge in a training step.

    Attributes:
        find_classes: gives the classes that the knowledge has, None for all; reads the folder, and is called when
            training starts.
        limit: how many stored boxes of an image join its proposals, the best first.
    """

    find_classes: Callable[[], ClassMap | None]
    limit: int

    @cached_property
    def classes(self) -> ClassMap | None:
        """The classes that the knowledge has; None: all."""
        return self.find_classes()

    def of_batch(self, batched_inputs: Sequence[dict[str, Any]], device: torch.device) -> list[Instances]:
        """The stored boxes and logits that join, image by image.

        Raises:
            SetupError: an image has none, because another data loader made the batch.
        """
        if any(STORED not in item for item in batched_inputs):
            raise SetupError(
                "KD.TEACHER.STORED is set, but the batch has no stored knowledge: its items lack "
                f"{STORED!r}. Take the data loader of kd_det.engine.trainer.DistillTrainer.build_train_loader(cfg)."
            )
        return [item[STORED][: self.limit].to(device) for item in batched_inputs]

    def shared(self, stage: StudentRegions, stored: Sequence[Instances]) -> SharedRegions:
        """The sampled proposals of a box stage that carry stored logits, with both networks' logits.

        Args:
            stage: of the student, on proposals of ``joined_with_rows``.
            stored: what ``of_batch`` returned.
        """
        assert stage.stored_rows is not None  # joined_with_rows sets the field
        logits = torch.cat([each.get(LOGITS) for each in stored])
        # Row -1 is the last: a row of zeros, which is not selected below.
        theirs = torch.nn.functional.pad(logits, (0, 0, 0, 1))[stage.stored_rows]
        regions = selected(
            SharedRegions(stage.logits, theirs, stage.labels, stage.boxes, stage.stage, None), stage.stored_rows >= 0
        )
        return regions if self.classes is None else on_shared_classes(regions, self.classes)


def stored_limit(cfg: CfgNode) -> int:
    """How many stored boxes of an image join its proposals: KD.STORED.FRACTION of those that are sampled.

    Raises:
        SetupError: not even one.
    """
    fraction, sampled = cfg.KD.STORED.FRACTION, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    limit = math.floor(fraction * sampled + 1e-6)  # 0.29 * 100 is below 29
    if limit < 1:
        raise SetupError(
            f"KD.STORED.FRACTION is {fraction} and MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE {sampled}: no stored box would "
            f"be used. Set the fraction to {1 / sampled:.2g} or more."
        )
    return limit


def joined(proposals: Sequence[Instances], others: Sequence[Instances]) -> list[Instances]:
    """The proposals and others of the same images, with the fields "proposal_boxes" and "objectness_logits"."""
    together = []
    for ours, theirs in zip(proposals, others, strict=True):
        both = Instances(ours.image_size)
        both.proposal_boxes = Boxes.cat([ours.proposal_boxes, theirs.proposal_boxes])
        both.objectness_logits = torch.cat([ours.objectness_logits, theirs.objectness_logits])
        together.append(both)
    return together


def joined_with_rows(proposals: Sequence[Instances], stored: Sequence[Instances]) -> list[Instances]:
    """As ``joined``, and each proposal carries the row of its stored logits."""
    together, first = joined(proposals, stored), 0
    for both, theirs in zip(together, stored, strict=True):
        rows = _no_rows(both)
        rows[len(both) - len(theirs) :] = torch.arange(first, first + len(theirs), device=rows.device)
        both.set(ROW, rows)
        first += len(theirs)
    return together


def without_rows(targets: Sequence[Instances]) -> list[Instances]:
    """The ground truth with the field of the rows, which it needs to become proposals itself (PROPOSAL_APPEND_GT)."""
    return [Instances(each.image_size, **each.get_fields(), **{ROW: _no_rows(each)}) for each in targets]


def rows_of(proposals: Sequence[Instances]) -> Tensor | None:
    """(R,) int64, the rows of all proposals of a batch; None if they have no such field."""
    return torch.cat([each.get(ROW) for each in proposals]) if all(each.has(ROW) for each in proposals) else None


def carry_rows(before: Sequence[Instances], predicted: Sequence[Tensor], refined: Sequence[Instances]) -> None:
    """Gives the proposals of a Cascade's stage the rows of those that they were refined from, if these carry rows.

    Args:
        before: the proposals of the stage before.
        predicted: the boxes that it predicted for them, (R, 4) of each image.
        refined: the proposals made of these; Detectron2 clips the boxes to the image and drops the empty ones.
    """
    for ours, boxes, following in zip(before, predicted, refined, strict=True):
        if ours.has(ROW):
            clipped = Boxes(boxes.detach())
            clipped.clip(following.image_size)
            following.set(ROW, ours.get(ROW)[clipped.nonempty()])


def _no_rows(instances: Instances) -> Tensor:
    boxes = instances.gt_boxes if instances.has("gt_boxes") else instances.proposal_boxes
    return torch.full((len(instances),), -1, device=boxes.device)
