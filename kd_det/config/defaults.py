"""Every ``KD.*`` key, and how a configuration is read.

``add_kd_config`` adds the keys to a Detectron2 configuration, as the projects that ship with Detectron2 do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from kd_det.common.config_merge import merge_config
from kd_det.common.registry import Registry

# The KD terms by name: ``kd_det.modeling.terms.register_term`` adds them. It is defined here, below the terms
# themselves, because a term of one's own brings keys.
TERMS: Registry[type[Any]] = Registry("KD term", "KD.TERMS", "KD")

# The distilling ROI heads, and the Detectron2 heads that each one is when nothing is distilled.
PLAIN_ROI_HEADS = {
    "DistillROIHeads": "StandardROIHeads",
    "DistillCascadeROIHeads": "CascadeROIHeads",
    "DistillRes5ROIHeads": "Res5ROIHeads",
}

# The one part of a student that plain Detectron2 does not have.
TIMM_BACKBONE = "build_timm_fpn_backbone"


def add_kd_config(cfg: CfgNode) -> None:
    """Adds every ``KD.*`` key with its default to ``cfg``, in place, those of imported terms included.

    Greek letters are the papers' symbols.
    """
    # Data sets of your own, each [name, COCO instances JSON, image folder]; paths from the working directory. A set is
    # used once DATASETS.TRAIN or DATASETS.TEST names it.
    cfg.DATASETS.COCO_JSON = []

    # The network of timm under MODEL.BACKBONE.NAME build_timm_fpn_backbone. Its ImageNet weights: MODEL.WEIGHTS
    # timm://NAME, or timm://FILE for a .pth, .bin or .safetensors file of timm's.
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "mobilenetv2_100"
    cfg.MODEL.TIMM.NORM = "FrozenBN"  # "FrozenBN": BatchNorm with fixed statistics and scale; "BN": trained

    cfg.KD = CfgNode()

    # The distillation terms, each adding its own loss to the detector's: "kd", "dkd", "nkd", "sdd" on the class logits
    # of shared proposals, "reviewkd", "fitnet", "fgfi", "pkd" on feature maps. Empty trains the plain student.
    cfg.KD.TERMS = ()

    cfg.KD.TEACHER = CfgNode()
    # The teacher's configuration: a model-zoo name ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"), a path, or the
    # name of a shipped configuration ("digits_det/teacher.yaml").
    cfg.KD.TEACHER.CONFIG_FILE = ""
    # The teacher's checkpoint: a path or URL. Empty takes the zoo's own checkpoint for that zoo configuration.
    cfg.KD.TEACHER.WEIGHTS = ""
    # Overrides of the teacher's configuration: ["MODEL.ROI_HEADS.NUM_CLASSES", 20, ...].
    cfg.KD.TEACHER.OPTS = []
    # Which classes to compare, where the teacher has others than the student or has them in another order: "name" for
    # a class that both call so, "student's name=teacher's name", "*" for all names that both have. The classes left
    # out are in neither softmax. Empty: both have the same classes in the same order.
    cfg.KD.TEACHER.CLASS_MAP = []
    # Precision of the teacher's frozen forward: "float32", "bfloat16" or "float16".
    cfg.KD.TEACHER.DTYPE = "float32"

    # Hinton et al. 2015: WEIGHT * T^2 * KL(teacher || student) over the K+1 classes of every sampled proposal.
    cfg.KD.KD = CfgNode()
    cfg.KD.KD.WEIGHT = 1.0
    cfg.KD.KD.TEMPERATURE = 1.0  # T

    # Zhao et al. 2022, eq. 7: WEIGHT * T^2 * (alpha * TCKD + beta * NCKD); defaults are the paper's for detection.
    cfg.KD.DKD = CfgNode()
    cfg.KD.DKD.WEIGHT = 1.0
    cfg.KD.DKD.ALPHA = 1.0  # alpha, weight of the target-class part
    cfg.KD.DKD.BETA = 0.25  # beta, weight of the non-target part
    cfg.KD.DKD.TEMPERATURE = 1.0  # T

    # Yang et al. 2023: WEIGHT * (target part + gamma * T^2 * non-target part); defaults are the paper's for ImageNet.
    cfg.KD.NKD = CfgNode()
    cfg.KD.NKD.WEIGHT = 1.0
    cfg.KD.NKD.GAMMA = 1.5  # gamma, weight of the non-target part
    cfg.KD.NKD.TEMPERATURE = 1.0  # T, of the non-target part

    # Wei et al. 2024, carried over from an image's regions to a proposal's: WEIGHT * (D_con + beta * D_com) of the base
    # loss over the whole proposal and its cells. The paper is on classification. "sdd" includes its base loss.
    cfg.KD.SDD = CfgNode()
    cfg.KD.SDD.WEIGHT = 1.0
    # The loss of one region: "kd", "dkd" or "nkd", with that term's settings (KD.DKD.ALPHA, ...) except its weight.
    cfg.KD.SDD.BASE = "dkd"
    # 1 for the whole proposal, then m, 2 to 8, for its m x m cells: each is pooled and classified like a proposal.
    cfg.KD.SDD.SCALES = (1, 2)
    # What a cell is: "grid", a part of the proposal, pooled like a box; "interleaved", every m-th sample of the whole
    # proposal pooled m times as finely.
    cfg.KD.SDD.CELLS = "grid"
    # How many of a batch's proposals are divided, evenly spaced among those sampled (which Detectron2 shuffles); the
    # loss has the same expectation. 0: every one, at twice the time of a step and more.
    cfg.KD.SDD.PROPOSALS = 256
    cfg.KD.SDD.COMPLEMENTARY_WEIGHT = 2.0  # beta, of cells that the teacher judges otherwise than the whole

    # The terms on feature maps have a key FEATURES: which maps are compared. "p3": the maps that both backbones call
    # so; "p3=res4": the student's p3 with the teacher's res4. Empty: all maps with the same name in both.

    # Chen et al. 2021: WEIGHT * HCL between the student's fused maps and the teacher's. The paper's code takes p2 to
    # p6, weight 1.2 for R101 to R18, 1.0 for R101 to R50 and 2.0 for R50 to MobileNetV2; so does the code of Zhao et
    # al. 2022, alone and with "dkd".
    cfg.KD.REVIEWKD = CfgNode()
    cfg.KD.REVIEWKD.WEIGHT = 1.0
    cfg.KD.REVIEWKD.FEATURES = ()
    cfg.KD.REVIEWKD.MID_CHANNELS = 256  # channels within the fusion blocks; 256 in the paper's code

    # Romero et al. 2015: WEIGHT * squared error between the student's maps, adapted by a 1x1 convolution, and the
    # teacher's. The paper is on classification, and the code of Zhao et al. 2022, who publish detection results of it,
    # does not have it: the weight is ours.
    cfg.KD.FITNET = CfgNode()
    cfg.KD.FITNET.WEIGHT = 1.0
    cfg.KD.FITNET.FEATURES = ()

    # Wang et al. 2019: WEIGHT * squared error as for "fitnet", summed over channels, at positions near objects.
    cfg.KD.FGFI = CfgNode()
    cfg.KD.FGFI.WEIGHT = 0.01  # lambda; the default of the paper's code for Faster R-CNN
    # A position is near an object if one of its RPN anchors has an IoU with it above THRESHOLD times the largest IoU
    # that any anchor has with it.
    cfg.KD.FGFI.THRESHOLD = 0.5  # psi
    # As for the others; the student's maps must be among MODEL.RPN.IN_FEATURES.
    cfg.KD.FGFI.FEATURES = ()

    # Cao et al. 2022: WEIGHT * (1 - Pearson correlation) between the student's and the teacher's maps, channel by
    # channel, averaged over the levels; adapted by a 1x1 convolution only where their channels differ. The authors'
    # code (MMRazor) sums p2 to p5 with weight 6 each for Faster R-CNN, 10 for detectors of one stage: 24 of the mean.
    cfg.KD.PKD = CfgNode()
    cfg.KD.PKD.WEIGHT = 24.0  # alpha
    cfg.KD.PKD.FEATURES = ()

    TERMS.add_sections(cfg)


def load_config(
    config_file: str | Sequence[str], overrides: Sequence[object] = (), *, device: str = "cuda"
) -> CfgNode:
    """Detectron2's defaults and the ``KD.*`` keys, then ``config_file``, then ``overrides`` (KEY VALUE ...).

    Args:
        config_file: paths or names of shipped configurations ("coco/dkd_r101_r18.yaml"), merged in order, the later
            wins; a string is one of them, or none if empty.
        overrides: see above.
        device: MODEL.DEVICE where neither of them names it; the default is Detectron2's.

    Raises:
        SetupError: a file does not exist or is not YAML, a key does not exist (the nearest is suggested), or a value
            is of the wrong type.
    """
    cfg = get_cfg()
    add_kd_config(cfg)
    cfg.MODEL.DEVICE = device
    merge_config(cfg, config_file, overrides, source="--config-file")
    return cfg


def plain_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` that plain Detectron2 understands: none of our keys, Detectron2's own model and heads."""
    plain = cfg.clone()
    plain.defrost()
    plain.pop("KD", None)
    plain.DATASETS.pop("COCO_JSON", None)
    if plain.MODEL.BACKBONE.NAME != TIMM_BACKBONE:  # that one needs kd_det wherever it is built
        plain.MODEL.pop("TIMM", None)
    if plain.MODEL.META_ARCHITECTURE == "DistillRCNN":
        plain.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    heads = plain.MODEL.ROI_HEADS.NAME
    plain.MODEL.ROI_HEADS.NAME = PLAIN_ROI_HEADS.get(heads, heads)
    return plain
