"""The keys under MODEL with the checks that need no other key, for students and teachers.

Switches and free text are left out: only their type is checked.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY

from kd_det.common.errors import SetupError, below_one, non_negative
from kd_det.common.setting_checks import (
    LARGEST,
    Check,
    channels,
    choice,
    count,
    divisor,
    each,
    either,
    fraction,
    number,
    registered,
    string,
)

names = each(string)
maps = each(string, least=1)
norm = choice("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
pooler_type = choice("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
box_loss = choice("smooth_l1", "giou", "diou", "ciou")
box_weights = each(divisor, lengths=(4, 5))  # 5 for rotated boxes
labels = each(choice(-1, 0, 1))
side = count(1, 1024)


def thresholds(key: str, value: Any) -> None:
    """IoUs in ascending order."""
    each(fraction, least=1)(key, value)
    if value[0] <= 0 or any(low > high for low, high in pairwise(value)):
        raise SetupError(f"{key} is {value!r:.200}; it must be IoUs above 0 in ascending order.")


def per_level(check: Check) -> Check:
    """A list for all maps together, or a list of lists, one for each map or one for all."""

    def checked(key: str, value: Any) -> None:
        nested = [isinstance(entry, (list, tuple)) for entry in value]
        each(each(check, least=1) if any(nested) else check, least=1)(key, value)

    return checked


def switch(key: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise SetupError(f"{key} is {value!r:.200}; it must be True or False.")


MODEL: dict[str, Check] = {
    "MODEL.META_ARCHITECTURE": registered(META_ARCH_REGISTRY),
    "MODEL.PIXEL_MEAN": each(number(-LARGEST, LARGEST), least=1),
    "MODEL.PIXEL_STD": each(divisor, least=1),
    "MODEL.TIMM.NORM": choice("FrozenBN", "BN"),
    "MODEL.BACKBONE.NAME": registered(BACKBONE_REGISTRY),
    "MODEL.BACKBONE.FREEZE_AT": count(0),
    "MODEL.FPN.IN_FEATURES": names,
    "MODEL.FPN.OUT_CHANNELS": channels,
    "MODEL.FPN.NORM": norm,
    "MODEL.FPN.FUSE_TYPE": choice("sum", "avg"),
    "MODEL.PROPOSAL_GENERATOR.NAME": registered(PROPOSAL_GENERATOR_REGISTRY, "PrecomputedProposals"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": count(0),
    "MODEL.ANCHOR_GENERATOR.NAME": registered(ANCHOR_GENERATOR_REGISTRY),
    "MODEL.ANCHOR_GENERATOR.SIZES": per_level(divisor),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": per_level(divisor),
    "MODEL.ANCHOR_GENERATOR.ANGLES": per_level(number(-LARGEST, LARGEST)),
    "MODEL.ANCHOR_GENERATOR.OFFSET": below_one,
    "MODEL.RPN.HEAD_NAME": registered(RPN_HEAD_REGISTRY),
    "MODEL.RPN.IN_FEATURES": maps,
    "MODEL.RPN.BOUNDARY_THRESH": count(-1),  # -1: anchors that cross the image's border are kept
    "MODEL.RPN.IOU_THRESHOLDS": thresholds,
    "MODEL.RPN.IOU_LABELS": labels,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": count(1),
    "MODEL.RPN.POSITIVE_FRACTION": fraction,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": box_loss,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": non_negative,
    "MODEL.RPN.BBOX_REG_WEIGHTS": box_weights,
    "MODEL.RPN.SMOOTH_L1_BETA": non_negative,
    "MODEL.RPN.LOSS_WEIGHT": non_negative,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": count(1),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": count(1),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": count(1),
    "MODEL.RPN.POST_NMS_TOPK_TEST": count(1),
    "MODEL.RPN.NMS_THRESH": fraction,
    "MODEL.RPN.CONV_DIMS": each(either(-1, channels)),  # -1: as many as the input has
    "MODEL.ROI_HEADS.NAME": registered(ROI_HEADS_REGISTRY),
    "MODEL.ROI_HEADS.NUM_CLASSES": count(1),
    "MODEL.ROI_HEADS.IN_FEATURES": maps,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": thresholds,
    "MODEL.ROI_HEADS.IOU_LABELS": labels,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": count(1),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": fraction,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": fraction,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": fraction,
    "MODEL.ROI_BOX_HEAD.NAME": registered(ROI_BOX_HEAD_REGISTRY, ""),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": box_loss,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": non_negative,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": box_weights,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": non_negative,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": side,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": count(0, 64),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": pooler_type,
    "MODEL.ROI_BOX_HEAD.NUM_FC": count(0, 1000),
    "MODEL.ROI_BOX_HEAD.FC_DIM": channels,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": count(0, 1000),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": channels,
    "MODEL.ROI_BOX_HEAD.NORM": norm,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": non_negative,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": count(1),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": each(each(divisor, lengths=(4,)), least=1),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": each(number(1e-6, 1.0), least=1),
    "MODEL.ROI_MASK_HEAD.NAME": registered(ROI_MASK_HEAD_REGISTRY, ""),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": side,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": count(0, 64),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": count(0, 1000),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": channels,
    "MODEL.ROI_MASK_HEAD.NORM": norm,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": pooler_type,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": registered(ROI_KEYPOINT_HEAD_REGISTRY, ""),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": side,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": count(0, 64),
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": each(channels),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": count(1, 10000),
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": count(0),
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": non_negative,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": pooler_type,
    "MODEL.SEM_SEG_HEAD.NAME": registered(SEM_SEG_HEADS_REGISTRY, ""),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": maps,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": count(-1000),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": count(1),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": channels,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": choice(1, 2, 4, 8, 16, 32, 64),
    "MODEL.SEM_SEG_HEAD.NORM": norm,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": non_negative,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": non_negative,
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": fraction,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": non_negative,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": fraction,
    "MODEL.RETINANET.NUM_CLASSES": count(1),
    "MODEL.RETINANET.IN_FEATURES": maps,
    "MODEL.RETINANET.NUM_CONVS": count(0, 1000),
    "MODEL.RETINANET.IOU_THRESHOLDS": thresholds,
    "MODEL.RETINANET.IOU_LABELS": labels,
    "MODEL.RETINANET.PRIOR_PROB": number(1e-6, 1 - 1e-6),
    "MODEL.RETINANET.SCORE_THRESH_TEST": fraction,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": count(1),
    "MODEL.RETINANET.NMS_THRESH_TEST": fraction,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": each(divisor, lengths=(4,)),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": non_negative,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": number(-1.0, 1.0),  # below 0: no weighting
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": non_negative,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": box_loss,
    "MODEL.RETINANET.NORM": norm,
    "MODEL.RESNETS.DEPTH": choice(18, 34, 50, 101, 152),
    "MODEL.RESNETS.OUT_FEATURES": each(choice("stem", "res2", "res3", "res4", "res5"), least=1),
    "MODEL.RESNETS.NUM_GROUPS": count(1, 4096),
    "MODEL.RESNETS.NORM": norm,
    "MODEL.RESNETS.WIDTH_PER_GROUP": count(1, 4096),
    "MODEL.RESNETS.RES5_DILATION": choice(1, 2),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": channels,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": channels,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": each(switch, lengths=(4,)),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": count(1, 4096),
}
