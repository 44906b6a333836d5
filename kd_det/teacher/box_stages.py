"""The box stages of Detectron2's ROI heads behind one interface: one of a Faster R-CNN, several of a Cascade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from kd_det.teacher.cells import Cells, pool_cells


@dataclass(frozen=True)
class BoxStage:
    """Pooling, head and predictor of one stage.

    Shape legend: N images, R boxes of the whole batch, D channels, P side of the pooled region, K object classes.

    Attributes:
        pooler: pools a box from the maps named ``in_features``.
        head: from (R, D, P, P) to what the predictor takes.
        predictor: its first output is the class logits (R, K+1).
    """

    pooler: ROIPooler
    in_features: Sequence[str]
    head: Callable[[Tensor], Tensor]
    predictor: nn.Module

    def pool(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """(R, D, P, P) from maps by name and N ``Boxes`` in the coordinates of the network's input."""
        return self.pooler(self._maps(features), list(boxes))

    def logits(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """The class logits (R, K+1) of the boxes."""
        return self.predictor(self.head(self.pool(features, boxes)))[0]

    def cell_logits(self, features: dict[str, Tensor], boxes: Sequence[Boxes], cells: Cells) -> Tensor:
        """The class logits (R, K+1, M) of the boxes' M cells, all through the head in one batch."""
        pooled = pool_cells(self.pooler, self._maps(features), boxes, cells)
        return self.predictor(self.head(pooled))[0].unflatten(0, (-1, cells.count)).transpose(1, 2)

    def _maps(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [features[name] for name in self.in_features]


@dataclass(frozen=True)
class _AveragedRes5:
    """The head of ``Res5ROIHeads``. A class, so that what holds a stage can be copied and pickled."""

    res5: nn.Module

    def __call__(self, pooled: Tensor) -> Tensor:
        return self.res5(pooled).mean(dim=(2, 3))


def box_stages(heads: nn.Module) -> list[BoxStage]:
    """The stages of ``StandardROIHeads``, ``CascadeROIHeads`` or ``Res5ROIHeads``, first to last.

    Raises:
        TypeError: the heads are of another kind.
    """
    if isinstance(heads, CascadeROIHeads):
        pairs = zip(heads.box_head, heads.box_predictor, strict=True)
        return [BoxStage(heads.box_pooler, heads.box_in_features, head, predictor) for head, predictor in pairs]
    if isinstance(heads, StandardROIHeads):
        return [BoxStage(heads.box_pooler, heads.box_in_features, heads.box_head, heads.box_predictor)]
    if isinstance(heads, Res5ROIHeads):
        return [BoxStage(heads.pooler, heads.in_features, _AveragedRes5(heads.res5), heads.box_predictor)]
    raise TypeError(f"{type(heads).__name__} has no box stages that kd_det knows")


def box_modules(heads: nn.Module) -> list[nn.Module]:
    """The modules that turn pooled regions into logits: what a frozen copy runs."""
    return [heads.res5 if isinstance(heads, Res5ROIHeads) else heads.box_head, heads.box_predictor]
