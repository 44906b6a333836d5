"""Rules about several keys of a model together, and about the maps of its backbone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN, ProposalNetwork, RetinaNet
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.config.other_keys import CHANNELS

NO_GENERATOR = "PrecomputedProposals"
GROUPS = 32  # the groups of Detectron2's GroupNorm


def check_model(cfg: CfgNode) -> None:
    """Checks the keys under MODEL against each other. Each has passed its own check.

    Raises:
        SetupError: two keys contradict each other; the message names both.
    """
    for rule in RULES:
        rule(cfg)


def _channels(cfg: CfgNode) -> None:
    wanted = CHANNELS[cfg.INPUT.FORMAT]
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != wanted:
            raise SetupError(
                f"MODEL.{key} has {len(cfg.MODEL[key])} values, but INPUT.FORMAT {cfg.INPUT.FORMAT} has {wanted} "
                "channels; give one for each."
            )


def _resnet(cfg: CfgNode) -> None:
    node = cfg.MODEL.RESNETS
    if "resnet" not in cfg.MODEL.BACKBONE.NAME:
        return
    if node.DEPTH in (18, 34):
        for key, needed in (("RES2_OUT_CHANNELS", 64), ("RES5_DILATION", 1), ("NUM_GROUPS", 1)):
            if node[key] != needed:
                raise SetupError(
                    f"MODEL.RESNETS.{key} is {node[key]}, but MODEL.RESNETS.DEPTH {node.DEPTH} needs {needed}. Set it."
                )
        if any(node.DEFORM_ON_PER_STAGE):
            raise SetupError(
                f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {node.DEFORM_ON_PER_STAGE}, but MODEL.RESNETS.DEPTH "
                f"{node.DEPTH} has no deformable convolutions. Set all four to False."
            )
    if "fpn" in cfg.MODEL.BACKBONE.NAME:
        known_maps("MODEL.FPN.IN_FEATURES", cfg.MODEL.FPN.IN_FEATURES, node.OUT_FEATURES, "MODEL.RESNETS.OUT_FEATURES")


def _pyramid(cfg: CfgNode) -> None:
    if "fpn" in cfg.MODEL.BACKBONE.NAME and not cfg.MODEL.FPN.IN_FEATURES:
        raise SetupError(
            f"MODEL.FPN.IN_FEATURES is empty, but MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has a pyramid. Name "
            "the maps it is built on: ['res2', 'res3', 'res4', 'res5']."
        )


def _groups(cfg: CfgNode) -> None:
    """GroupNorm divides the channels into 32 groups."""
    model = cfg.MODEL
    uses = [("FPN", "OUT_CHANNELS", "fpn" in model.BACKBONE.NAME)]
    if is_architecture(cfg, GeneralizedRCNN):
        uses += [
            ("ROI_BOX_HEAD", "CONV_DIM", model.ROI_BOX_HEAD.NUM_CONV > 0),
            ("ROI_MASK_HEAD", "CONV_DIM", model.MASK_ON),
        ]
    if is_architecture(cfg, PanopticFPN) or model.META_ARCHITECTURE == "SemanticSegmentor":
        uses.append(("SEM_SEG_HEAD", "CONVS_DIM", True))
    for section, key, used in uses:
        node = model[section]
        if used and node.NORM == "GN" and node[key] % GROUPS:
            raise SetupError(
                f"MODEL.{section}.{key} is {node[key]}, but MODEL.{section}.NORM GN needs a multiple of {GROUPS}."
            )


def _proposals(cfg: CfgNode) -> None:
    model = cfg.MODEL
    name = model.PROPOSAL_GENERATOR.NAME
    if not is_architecture(cfg, GeneralizedRCNN, ProposalNetwork):
        return
    if name == NO_GENERATOR:
        if is_architecture(cfg, ProposalNetwork):
            raise SetupError(
                f"MODEL.PROPOSAL_GENERATOR.NAME is {name}, but MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE} is "
                "only a proposal generator. Set it to RPN."
            )
        return
    boxes = 5 if name == "RRPN" else 4
    if len(model.RPN.BBOX_REG_WEIGHTS) != boxes and name in ("RPN", "RRPN"):
        raise SetupError(
            f"MODEL.RPN.BBOX_REG_WEIGHTS is {model.RPN.BBOX_REG_WEIGHTS}; the boxes of MODEL.PROPOSAL_GENERATOR.NAME "
            f"{name} need {boxes} weights."
        )
    rotated = model.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator"
    if rotated != (name == "RRPN") and name in ("RPN", "RRPN"):
        raise SetupError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is {name} with MODEL.ANCHOR_GENERATOR.NAME {model.ANCHOR_GENERATOR.NAME}; "
            "RRPN goes with RotatedAnchorGenerator, RPN with DefaultAnchorGenerator."
        )
    _matcher(cfg, "RPN")
    _anchors(cfg, "RPN")


def _dense(cfg: CfgNode) -> None:
    if is_architecture(cfg, RetinaNet):
        _matcher(cfg, "RETINANET")
        _anchors(cfg, "RETINANET")


def _matcher(cfg: CfgNode, section: str) -> None:
    node = cfg.MODEL[section]
    if len(node.IOU_LABELS) != len(node.IOU_THRESHOLDS) + 1:
        raise SetupError(
            f"MODEL.{section}.IOU_LABELS is {node.IOU_LABELS}; MODEL.{section}.IOU_THRESHOLDS {node.IOU_THRESHOLDS} "
            f"needs {len(node.IOU_THRESHOLDS) + 1} labels, one for each range of IoUs."
        )


def _anchors(cfg: CfgNode, section: str) -> None:
    node, levels = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL[section].IN_FEATURES
    counts = [1] * len(levels)
    for key in ("SIZES", "ASPECT_RATIOS", *(("ANGLES",) if node.NAME == "RotatedAnchorGenerator" else ())):
        lists = node[key] if isinstance(node[key][0], (list, tuple)) else [node[key]]
        if len(lists) not in (1, len(levels)):
            raise SetupError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(lists)} lists, but MODEL.{section}.IN_FEATURES names "
                f"{len(levels)} maps, {list(levels)}. Give one list for each, or one for all."
            )
        lists = lists if len(lists) == len(levels) else list(lists) * len(levels)
        counts = [count * len(each) for count, each in zip(counts, lists, strict=True)]
    if len(set(counts)) > 1:
        raise SetupError(
            f"MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS make {counts} anchors at a position of the maps "
            f"{list(levels)}; the head needs the same number on each."
        )


def _heads(cfg: CfgNode) -> None:
    model = cfg.MODEL
    if not is_architecture(cfg, GeneralizedRCNN):
        return
    heads = ROI_HEADS_REGISTRY.get(model.ROI_HEADS.NAME)
    _matcher(cfg, "ROI_HEADS")
    if _subclass(heads, Res5ROIHeads):
        _res5(cfg)
    if _subclass(heads, StandardROIHeads):
        _standard(cfg)
    if _subclass(heads, CascadeROIHeads):
        _cascade(cfg)
    elif _subclass(heads, Res5ROIHeads, StandardROIHeads):
        _box_weights(cfg)
    for kind in ("MASK", "KEYPOINT"):
        if model[f"{kind}_ON"] and not model[f"ROI_{kind}_HEAD"].NAME:
            raise SetupError(f"MODEL.ROI_{kind}_HEAD.NAME is empty, but MODEL.{kind}_ON is True. Name a head.")
    box = model.ROI_BOX_HEAD
    if box.get("USE_FED_LOSS", False) and not box.get("USE_SIGMOID_CE", False):
        raise SetupError("MODEL.ROI_BOX_HEAD.USE_FED_LOSS is True, which needs MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True.")


def _box_weights(cfg: CfgNode) -> None:
    weights, heads = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS, cfg.MODEL.ROI_HEADS.NAME
    wanted = 5 if heads == "RROIHeads" else 4
    if len(weights) != wanted:
        raise SetupError(
            f"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS is {weights}; the boxes of MODEL.ROI_HEADS.NAME {heads} need "
            f"{wanted} weights."
        )


def _res5(cfg: CfgNode) -> None:
    model = cfg.MODEL
    if len(model.ROI_HEADS.IN_FEATURES) != 1:
        raise SetupError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {model.ROI_HEADS.IN_FEATURES}; MODEL.ROI_HEADS.NAME "
            f"{model.ROI_HEADS.NAME} works on one map, as ['res4']."
        )
    if model.KEYPOINT_ON:
        raise SetupError(
            f"MODEL.KEYPOINT_ON is True, but MODEL.ROI_HEADS.NAME {model.ROI_HEADS.NAME} has no keypoint head. Take "
            "heads on a pyramid, such as StandardROIHeads."
        )


def _standard(cfg: CfgNode) -> None:
    box, heads = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS.NAME
    if not box.NAME:
        raise SetupError(
            f"MODEL.ROI_BOX_HEAD.NAME is empty, but MODEL.ROI_HEADS.NAME {heads} needs a box head. Set it to "
            "FastRCNNConvFCHead, and MODEL.ROI_BOX_HEAD.NUM_FC to 2."
        )
    if box.NAME == "FastRCNNConvFCHead" and not box.NUM_FC + box.NUM_CONV:
        raise SetupError(
            "MODEL.ROI_BOX_HEAD.NUM_FC and NUM_CONV are 0: the box head FastRCNNConvFCHead has no layer. Set NUM_FC to "
            "2."
        )


def _cascade(cfg: CfgNode) -> None:
    node = cfg.MODEL.ROI_BOX_CASCADE_HEAD
    if len(node.IOUS) != len(node.BBOX_REG_WEIGHTS):
        raise SetupError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS names {len(node.IOUS)} stages and BBOX_REG_WEIGHTS "
            f"{len(node.BBOX_REG_WEIGHTS)}; make them agree."
        )
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise SetupError(
            f"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is False, but MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} "
            "needs True. Set it."
        )
    if node.IOUS[0] != cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]:
        raise SetupError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS starts at {node.IOUS[0]}, MODEL.ROI_HEADS.IOU_THRESHOLDS at "
            f"{cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]}; the first stage's must be the same."
        )


def is_architecture(cfg: CfgNode, *kinds: type) -> bool:
    """Whether MODEL.META_ARCHITECTURE is one of the classes or built on one."""
    return _subclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), *kinds)


def _subclass(registered: object, *kinds: type) -> bool:
    return isinstance(registered, type) and issubclass(registered, kinds)


def known_maps(key: str, wanted: Sequence[str], known: Collection[str], source: str) -> None:
    """Raises ``SetupError`` unless the maps ``wanted``, which ``key`` names, are all different and all in ``known``.

    Args:
        source: what provides the known maps, for the message.
    """
    for name in wanted:
        if name not in known:
            raise SetupError(
                f"{key} names {name!r}, but the maps of {source} are {', '.join(known)}.{did_you_mean(name, known)} "
                "Name some of these."
            )
        if list(wanted).count(name) > 1:
            raise SetupError(f"{key} names {name!r} twice; name every map once.")


RULES: Sequence[Callable[[CfgNode], None]] = (_channels, _resnet, _pyramid, _groups, _proposals, _dense, _heads)


def check_maps(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """Checks the keys that name maps of the backbone.

    Args:
        shapes: the backbone's maps, name to channels and stride (pixels).

    Raises:
        SetupError: a map does not exist, or the maps of one part do not fit together.
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
