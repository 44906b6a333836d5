"""The term ``fgfi``: regression of the teacher's feature maps near the objects.

Shape legend: N images, G objects of an image, H and W of a map, A anchors at each of its positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from kd_det.common.errors import SetupError, below_one, non_negative
from kd_det.common.setting_checks import Check, name_pairs
from kd_det.losses import fgfi_loss
from kd_det.modeling.regions import DistillationInputs
from kd_det.modeling.terms.base import Maps, register_term
from kd_det.modeling.terms.features import Adapters, FeatureTerm, MapPair, align, feature_pairs


@register_term("fgfi")
class FGFITerm(FeatureTerm):
    """``loss_fgfi``: ``fgfi_loss`` (Wang et al. 2019) between the adapted student's and the teacher's maps.

    Args:
        threshold: psi, 0 to 1: a position counts if one of its anchors has an IoU with an object above psi times the
            largest IoU that any anchor has with that object.
        kwargs: as ``FeatureTerm``.
    """

    needs_anchors = True
    checks: ClassVar[Mapping[str, Check]] = {
        "KD.FGFI.WEIGHT": non_negative,
        "KD.FGFI.FEATURES": name_pairs,
        "KD.FGFI.THRESHOLD": below_one,
    }

    @configurable
    def __init__(self, *, threshold: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        node = cfg.KD.FGFI
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
            raise SetupError(
                'KD.TERMS: "fgfi" needs the anchors of an RPN, but MODEL.PROPOSAL_GENERATOR.NAME is '
                '\'PrecomputedProposals\', which has none. Train with an RPN, or take "fitnet" or "pkd".'
            )
        pairs = feature_pairs("KD.FGFI.FEATURES", node.FEATURES, maps, admitted=cfg.MODEL.RPN.IN_FEATURES)
        _check_anchored(pairs, cfg.MODEL.RPN.IN_FEATURES)
        return {
            "weight": node.WEIGHT,
            "pairs": pairs,
            "adapt": Adapters(pairs),
            "threshold": node.THRESHOLD,
        }

    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        assert inputs.anchors is not None  # needs_anchors
        near = near_anchors([targets.gt_boxes for targets in inputs.targets], inputs.anchors, self.threshold)
        masks = []
        for pair, theirs in zip(self.pairs, teacher, strict=True):
            height, width = inputs.student_features[pair.student].shape[2:]
            mask = near[pair.student].view(len(theirs), 1, height, width, -1).any(dim=-1)
            masks.append(align(mask.float(), theirs, pair, mode="nearest-exact")[0].squeeze(1) > 0)
        return fgfi_loss(student, teacher, masks)


def _check_anchored(pairs: Sequence[MapPair], anchored: Sequence[str]) -> None:
    for pair in pairs:
        if pair.student not in anchored:
            raise SetupError(
                f"KD.FGFI.FEATURES: the student has no anchors on {pair.student!r}, only on MODEL.RPN.IN_FEATURES "
                f"{list(anchored)}. Choose from these."
            )


@torch.no_grad()
def near_anchors(objects: Sequence[Boxes], anchors: Mapping[str, Boxes], threshold: float) -> dict[str, Tensor]:
    """Which anchors have an IoU with an object above ``threshold`` times the largest that the object has with any.

    Args:
        objects: G boxes for each of the N images.
        anchors: name of the map to its H * W * A anchors, the same for every image.
        threshold: psi.

    Returns:
        name of the map to (N, H * W * A) bool; all False for an image without objects.
    """
    images = [_near(boxes, list(anchors.values()), threshold) for boxes in objects]
    return {name: torch.stack(near) for name, near in zip(anchors, zip(*images, strict=True), strict=True)}


def _near(boxes: Boxes, levels: Sequence[Boxes], threshold: float) -> list[Tensor]:
    ious = [pairwise_iou(boxes, level) for level in levels]  # (G, H * W * A) each
    largest = torch.stack([iou.amax(dim=1) for iou in ious]).amax(dim=0)
    return [(iou > threshold * largest[:, None]).any(dim=0) for iou in ious]
