"""Every ``KD.*`` key, and how a configuration is read.

``add_kd_config`` adds the keys to a Detectron2 configuration, as the projects that ship with Detectron2 do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from kd_det.common.config_merge import merge_config
from kd_det.common.registry import Registry

# The KD terms by name: ``kd_det.modeling.terms.register_term`` adds them. It is defined here, and not next to the
# terms, because a user's own term brings keys.
TERMS: Registry[type[Any]] = Registry("KD term", "KD.TERMS", "KD")

# The distilling ROI heads, and the Detectron2 heads that each one equals without distillation.
PLAIN_ROI_HEADS = {
    "DistillROIHeads": "StandardROIHeads",
    "DistillCascadeROIHeads": "CascadeROIHeads",
    "DistillRes5ROIHeads": "Res5ROIHeads",
}

# The one part of a student that plain Detectron2 does not have.
TIMM_BACKBONE = "build_timm_fpn_backbone"


def add_kd_config(cfg: CfgNode) -> None:
    """Adds every ``KD.*`` key with its default to ``cfg``, in place, including the keys of imported terms.

    Greek letters in the comments are the papers' symbols.
    """
    # Your own data sets, each [name, COCO instances JSON, image folder]. Paths are relative to the working directory. A
    # set is used if DATASETS.TRAIN, DATASETS.TEST or DATASETS.UNLABELED names it. A set of images without annotations
    # has a JSON without annotations, or is [name, "image folder/"], with the slash: all images in it and in its
    # sub-folders.
    cfg.DATASETS.COCO_JSON = []
    # Data sets whose images are trained on without annotations, beside DATASETS.TRAIN: the teacher's detections are
    # their ground truth, see KD.UNLABELED. Annotations that they have are ignored. Needs KD.TEACHER.
    cfg.DATASETS.UNLABELED = ()

    # The timm network of MODEL.BACKBONE.NAME build_timm_fpn_backbone. For its ImageNet weights, set MODEL.WEIGHTS to
    # timm://NAME, or to timm://FILE for a .pth, .bin or .safetensors file of timm's.
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
    # The classes to compare, if the teacher's classes or their order differ from the student's: "name" for a class with
    # the same name in both, "student's name=teacher's name", "*" for all names that both have. Other classes are left
    # out of both softmaxes. Empty: both have the same classes in the same order.
    cfg.KD.TEACHER.CLASS_MAP = []
    # Precision of the teacher's forward pass: "float32", "bfloat16", "float16", or "auto" for bfloat16 where the device
    # computes it faster than float32, and float32 elsewhere. A GPU needs compute capability 8.0; a CPU is timed when
    # training starts. The choice is logged. A resumed run chooses anew.
    cfg.KD.TEACHER.DTYPE = "auto"
    # A folder that kd-det store-teacher or kd-det import-teacher wrote for the training sets: boxes of each image, and
    # class logits on them. The boxes join the student's proposals, and "kd", "dkd" and "nkd" compare the logits of
    # those that are sampled; the teacher is not loaded. "sdd" and the terms on feature maps need the teacher too
    # (CONFIG_FILE, WEIGHTS). With no KD.TERMS the boxes alone help. Empty: no stored knowledge.
    cfg.KD.TEACHER.STORED = ""
    # Whether the boxes that the live teacher's RPN proposes join the student's proposals. Their number is the teacher's
    # own MODEL.RPN.POST_NMS_TOPK_TEST; change it in KD.TEACHER.OPTS. They help on a short schedule, where the student's
    # RPN is weak, and not a student that was trained for long.
    cfg.KD.TEACHER.PROPOSALS = False

    cfg.KD.STORED = CfgNode()
    # The largest share of an image's sampled proposals (MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE) that may be stored boxes:
    # only so many of the stored boxes join the proposals, the best first. Above 0, up to 1.
    cfg.KD.STORED.FRACTION = 1.0

    # The images of DATASETS.UNLABELED. Their ground truth is KD.TEACHER.STORED's detections, or without it those of the
    # live teacher. They have the losses of RPN and box head and the KD terms, logged as loss_*_unlabeled, but none of
    # masks and keypoints. The loss of a step is the mean over all its images: (n * L(labelled) + m * L(unlabelled)) /
    # (n + m) for n labelled and m unlabelled images.
    cfg.KD.UNLABELED = CfgNode()
    # Their share of the SOLVER.IMS_PER_BATCH images of a batch. In each process it is rounded to whole images.
    cfg.KD.UNLABELED.BATCH_FRACTION = 0.5
    # Detections with a score above this become ground truth. Stored detections have no score beside their
    # log-probabilities: it is the largest probability of a class, and that class is the label.
    cfg.KD.UNLABELED.THRESHOLD = 0.7
    # Other thresholds for some classes: ["person=0.9", "dog=0.5"].
    cfg.KD.UNLABELED.CLASS_THRESHOLDS = []
    # Whether the box regression losses of RPN and box head are taken on them.
    cfg.KD.UNLABELED.BOX_REGRESSION = True

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

    # Wei et al. 2024, applied to the regions of a proposal instead of an image: WEIGHT * (D_con + beta * D_com) of the
    # base loss over the whole proposal and its cells. The paper is about classification. "sdd" includes its base loss.
    cfg.KD.SDD = CfgNode()
    cfg.KD.SDD.WEIGHT = 1.0
    # The loss of one region: "kd", "dkd" or "nkd", with that term's settings (KD.DKD.ALPHA, ...) except its weight.
    cfg.KD.SDD.BASE = "dkd"
    # 1 for the whole proposal, then m from 2 to 8 for its m x m cells. Each cell is pooled and classified like a
    # proposal.
    cfg.KD.SDD.SCALES = (1, 2)
    # The kind of cell: "grid" is a part of the proposal, pooled like a box. "interleaved" is every m-th sample of the
    # whole proposal, pooled m times as finely.
    cfg.KD.SDD.CELLS = "grid"
    # How many of a batch's sampled proposals are divided into cells. They are evenly spaced in the sampled order, which
    # Detectron2 shuffles, so the expectation of the loss does not change. 0: all of them, which at least doubles the
    # time of a step.
    cfg.KD.SDD.PROPOSALS = 256
    cfg.KD.SDD.COMPLEMENTARY_WEIGHT = 2.0  # beta, where the teacher is right about only one of cell and whole

    # The terms on feature maps have a key FEATURES, the maps to compare: "p3" for the map of this name in both
    # backbones, "p3=res4" for the student's p3 and the teacher's res4. Empty: all maps with the same name in both.

    # Chen et al. 2021: WEIGHT * HCL between the student's fused maps and the teacher's. The paper's code takes p2 to
    # p6, weight 1.2 for R101 to R18, 1.0 for R101 to R50 and 2.0 for R50 to MobileNetV2; so does the code of Zhao et
    # al. 2022, alone and with "dkd".
    cfg.KD.REVIEWKD = CfgNode()
    cfg.KD.REVIEWKD.WEIGHT = 1.0
    cfg.KD.REVIEWKD.FEATURES = ()
    cfg.KD.REVIEWKD.MID_CHANNELS = 256  # channels in the fusion blocks; 256 in the paper's code

    # Romero et al. 2015: WEIGHT * squared error between the student's maps, adapted by a 1x1 convolution, and the
    # teacher's. The paper is about classification. Zhao et al. 2022 publish detection results, but their code does not
    # include it: the weight is ours.
    cfg.KD.FITNET = CfgNode()
    cfg.KD.FITNET.WEIGHT = 1.0
    cfg.KD.FITNET.FEATURES = ()

    # Wang et al. 2019: WEIGHT * squared error as for "fitnet", summed over channels, at positions near objects.
    cfg.KD.FGFI = CfgNode()
    cfg.KD.FGFI.WEIGHT = 0.01  # lambda; the default of the paper's code for Faster R-CNN
    # A position is near an object if one of its RPN anchors has an IoU with it above THRESHOLD times the largest IoU
    # that any anchor has with it.
    cfg.KD.FGFI.THRESHOLD = 0.5  # psi
    # As for the other terms; the student's maps must be among MODEL.RPN.IN_FEATURES.
    cfg.KD.FGFI.FEATURES = ()

    # Cao et al. 2022: WEIGHT * (1 - Pearson correlation) between the student's and the teacher's maps, channel by
    # channel, averaged over the levels. A 1x1 convolution adapts the student's maps only where the channels differ. The
    # authors' code (MMRazor) sums p2 to p5 with weight 6 each for Faster R-CNN, which is 24 for the mean, and 10 for
    # one-stage detectors.
    cfg.KD.PKD = CfgNode()
    cfg.KD.PKD.WEIGHT = 24.0  # alpha
    cfg.KD.PKD.FEATURES = ()

    TERMS.add_sections(cfg)


def load_config(
    config_file: str | Sequence[str], overrides: Sequence[object] = (), *, device: str = "cuda"
) -> CfgNode:
    """Detectron2's defaults and the ``KD.*`` keys, then ``config_file``, then ``overrides`` (KEY VALUE ...).

    Args:
        config_file: paths or names of shipped configurations ("coco/dkd_r101_r18.yaml"), merged in order; the later
            wins. A string is one of them, or none if empty.
        overrides: see above.
        device: MODEL.DEVICE if neither of them sets it; the default is Detectron2's.

    Raises:
        SetupError: a file does not exist or is not YAML, a key does not exist (the nearest is suggested), or a value
            has the wrong type.
    """
    cfg = get_cfg()
    add_kd_config(cfg)
    cfg.MODEL.DEVICE = device
    merge_config(cfg, config_file, overrides, source="--config-file")
    return cfg


def plain_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` for plain Detectron2: without our keys, with Detectron2's own model and heads."""
    plain = cfg.clone()
    plain.defrost()
    plain.pop("KD", None)
    for key in ("COCO_JSON", "UNLABELED"):
        plain.DATASETS.pop(key, None)
    if plain.MODEL.BACKBONE.NAME != TIMM_BACKBONE:  # this backbone needs kd_det in any case
        plain.MODEL.pop("TIMM", None)
    if plain.MODEL.META_ARCHITECTURE == "DistillRCNN":
        plain.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    heads = plain.MODEL.ROI_HEADS.NAME
    plain.MODEL.ROI_HEADS.NAME = PLAIN_ROI_HEADS.get(heads, heads)
    return plain
