"""The cells of a box: what scale decoupled distillation (``sdd``) looks at beside the whole box.

Shape legend: N images, R boxes of the whole batch, M cells of a box, D channels, P side of a pooled region, C columns
of the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn

from kd_det.teacher.box_stages import BoundBoxStage

KINDS = ("grid", "interleaved")
# The most cells along a side. With more, the cells of a batch take as much memory as thousands of images.
FINEST = 8


@dataclass(frozen=True)
class Cells:
    """How a box is divided.

    Attributes:
        sides: for each scale, the number m of cells along a side, 2 or more; a scale has m x m cells, row after row.
        kind: "grid" pools each cell's own part of the box to the head's P x P. "interleaved" pools the whole box to
            mP x mP and takes every m-th sample of it, from each of the m x m starts.
        boxes: how many boxes of a batch are divided, evenly spaced among all; None: every one.
    """

    sides: tuple[int, ...]
    kind: str = "grid"
    boxes: int | None = None

    @property
    def count(self) -> int:
        """M, the number of cells of all scales together."""
        return sum(side * side for side in self.sides)

    def rows(self, total: int, device: torch.device) -> Tensor:
        """(S,) int64: which of the batch's ``total`` boxes are divided, in ascending order.

        Detectron2 shuffles the sampled proposals of an image, those with an object before the others. An even spacing
        is therefore a random sample that keeps the shares of images and of objects, and draws no random numbers.
        """
        chosen = total if self.boxes is None else min(self.boxes, total)
        return torch.arange(chosen, device=device) * total // max(chosen, 1)


def classify_cells(stage: BoundBoxStage, boxes: Sequence[Boxes], cells: Cells) -> Tensor:
    """The class logits (R, C, M) of the boxes' cells, all through the head in one batch.

    Args:
        stage: a network's box stage, bound to its maps.
        boxes: N ``Boxes``, R in all, in the coordinates of the network's padded input.
        cells: how the boxes are divided.
    """
    logits = stage.logits(pool_cells(stage.pooler, stage.maps, boxes, cells))
    return logits.unflatten(0, (-1, cells.count)).transpose(1, 2)


def choose_boxes(boxes: Sequence[Boxes], rows: Tensor) -> list[Boxes]:
    """The boxes of each image that are among ``rows`` (S,) of all images' boxes, in ascending order."""
    ends = torch.tensor([len(some) for some in boxes]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    flat = rows.tolist()
    return [
        some[torch.tensor([row - start for row in flat if start <= row < end], dtype=torch.int64, device=some.device)]
        for some, start, end in zip(boxes, starts, ends, strict=True)
    ]


def pool_cells(pooler: ROIPooler, maps: list[Tensor], boxes: Sequence[Boxes], cells: Cells) -> Tensor:
    """The pooled cells of given boxes, each at the pyramid level that its whole box is pooled from.

    Args:
        pooler: the box head's.
        maps: the maps ``pooler`` pools from, (N, D, H, W) each.
        boxes: N ``Boxes``, R in all, in the coordinates of the network's padded input.
        cells: how the boxes are divided.

    Returns:
        (R * M, D, P, P), box after box, the M cells of a box together.
    """
    rois = convert_boxes_to_pooler_format(list(boxes))  # (R, 5): image, x0, y0, x1, y1
    levels = _levels(pooler, boxes)
    pool = _pool_parts if cells.kind == "grid" else _pool_phases
    pooled = [pool(pooler, maps, rois, levels, side) for side in cells.sides]
    return torch.cat(pooled, dim=1).flatten(0, 1)


def _levels(pooler: ROIPooler, boxes: Sequence[Boxes]) -> Tensor:
    if len(pooler.level_poolers) == 1 or not boxes:
        return torch.zeros(sum(len(some) for some in boxes), dtype=torch.int64, device=boxes[0].device)
    return assign_boxes_to_levels(
        list(boxes), pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )


def _pool_parts(pooler: ROIPooler, maps: list[Tensor], rois: Tensor, levels: Tensor, side: int) -> Tensor:
    """(R, side², D, P, P): each part of the box pooled as a box of its own."""
    steps = torch.arange(side, device=rois.device, dtype=rois.dtype)
    row, column = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    start, size = rois[:, None, 1:3], (rois[:, None, 3:5] - rois[:, None, 1:3]) / side
    corner = start + size * torch.stack((column, row), dim=-1)
    image = rois[:, None, :1].expand(-1, side * side, -1)
    parts = torch.cat((image, corner, corner + size), dim=-1)
    pooled = _pool(list(pooler.level_poolers), maps, parts.flatten(0, 1), levels.repeat_interleave(side * side))
    return pooled.unflatten(0, (-1, side * side))


def _pool_phases(pooler: ROIPooler, maps: list[Tensor], rois: Tensor, levels: Tensor, side: int) -> Tensor:
    """(R, side², D, P, P): the phases of the box pooled ``side`` times as finely."""
    height, width = pooler.output_size
    finer = [copy.copy(level) for level in pooler.level_poolers]
    for level in finer:
        level.output_size = (height * side, width * side)
    pooled = _pool(finer, maps, rois, levels).unflatten(3, (width, side)).unflatten(2, (height, side))
    return pooled.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)  # (R, D, P, side, P, side) to (R, side², D, P, P)


def _pool(poolers: Sequence[nn.Module], maps: list[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
    """Every region of ``rois`` from the map of its level, in the order given."""
    where = [(levels == level).nonzero().squeeze(1) for level in range(len(poolers))]
    pooled = [pooler(maps[level], rois[where[level]]) for level, pooler in enumerate(poolers)]
    return torch.cat(pooled)[torch.cat(where).argsort()]
