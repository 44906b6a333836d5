"""The rules about keys that name the backbone's maps: they need the maps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN, ProposalNetwork, RetinaNet

from kd_det.common.errors import SetupError
from kd_det.settings.model import NO_GENERATOR, is_architecture, known_maps


def check_maps(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Checks the keys that name maps of the backbone.

    Args:
        shapes: the backbone's maps, name to channels and stride (pixels).

    Raises:
        SetupError: a map is not there, or those that a part works on do not go together.
    """
    model = cfg.MODEL
    backbone = f"MODEL.BACKBONE.NAME {model.BACKBONE.NAME}"
    for section in _parts(cfg):
        key, wanted = f"MODEL.{section}.IN_FEATURES", model[section].IN_FEATURES
        known_maps(key, wanted, shapes, backbone)
        channels = [shapes[name].channels for name in wanted]
        if len(set(channels)) > 1 and section != "SEM_SEG_HEAD":
            raise SetupError(f"{key} names maps of {channels} channels; they must have the same number.")
        strides = [shapes[name].stride for name in wanted]
        if section == "ROI_HEADS" and any(2 * low != high for low, high in pairwise(strides)):
            raise SetupError(
                f"{key} is {list(wanted)}, maps of the strides {strides}; each must have twice the stride of the one "
                "before it."
            )


def _parts(cfg: CfgNode) -> list[str]:
    """The sections of MODEL whose IN_FEATURES the architecture reads."""
    generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME != NO_GENERATOR
    segments = is_architecture(cfg, PanopticFPN) or cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    used = {
        "RPN": generator and is_architecture(cfg, GeneralizedRCNN, ProposalNetwork),
        "ROI_HEADS": is_architecture(cfg, GeneralizedRCNN),
        "RETINANET": is_architecture(cfg, RetinaNet),
        "SEM_SEG_HEAD": segments,
    }
    return [section for section, is_used in used.items() if is_used]
