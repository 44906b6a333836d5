"""The box stages of Detectron2's ROI heads behind one interface: one for a Faster R-CNN, several for a Cascade.

Shape legend: N images, R boxes of the whole batch, D channels, H and W of a map, P side of a pooled region, K object
classes, C columns of the logits (K+1, the background last, unless ``classes`` selects some).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

Head = Callable[[Tensor], Tensor]
Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class BoxStage:
    """Pooler, head and predictor of one stage.

    Attributes:
        pooler: pools boxes from the maps named ``in_features``.
        in_features: names of these maps.
        head: from pooled regions (R, D, P, P) to what the predictor takes.
        predictor: from the head's output to class logits (R, K+1) and box deltas.
    """

    pooler: ROIPooler
    in_features: Sequence[str]
    head: Head
    predictor: Predictor

    def on(self, features: Mapping[str, Tensor]) -> BoundBoxStage:
        """The stage bound to the maps of one batch, name to (N, D, H, W)."""
        return BoundBoxStage(self.pooler, [features[name] for name in self.in_features], self.head, self.predictor)


@dataclass(frozen=True)
class BoundBoxStage:
    """A network's box stage and its maps of one batch: it can look at any box of the batch's images.

    Attributes:
        pooler, head, predictor: as of ``BoxStage``.
        maps: the maps that ``pooler`` reads, (N, D, H, W) each.
        classes: selects the columns of the logits, (R, K+1) to (R, C); None: all.
    """

    pooler: ROIPooler
    maps: list[Tensor]
    head: Head
    predictor: Predictor
    classes: Callable[[Tensor], Tensor] | None = None

    def pool(self, boxes: Sequence[Boxes]) -> Tensor:
        """(R, D, P, P) from N ``Boxes`` in the coordinates of the network's padded input."""
        return self.pooler(self.maps, list(boxes))

    def logits(self, pooled: Tensor) -> Tensor:
        """Class logits (R, C) of pooled regions (R, D, P, P)."""
        logits, _ = self.predictor(self.head(pooled))
        return logits if self.classes is None else self.classes(logits)


@dataclass(frozen=True)
class _AveragedRes5:
    """The head of ``Res5ROIHeads``. A class, so that an object with a stage can be copied and pickled."""

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
    """The modules that turn pooled regions into logits, of all stages."""
    head = "res5" if isinstance(heads, Res5ROIHeads) else "box_head"
    return [heads.get_submodule(head), heads.get_submodule("box_predictor")]
