"""Every key of the classification benchmarks. Greek letters are the papers' symbols."""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from classification.composition import compose
from classification.distillers import DISTILLERS


def get_config() -> CfgNode:
    """A configuration with every key at its default, those of imported distillers included."""
    cfg = CfgNode()
    # Where checkpoints, TensorBoard's curves and result.json go. Empty: output/DATA/METHOD_TEACHER_STUDENT, such as
    # output/cifar100/dkd_res32x4_res8x4, or output/cifar100/vanilla_res8x4 for a model alone.
    cfg.OUTPUT_DIR = ""
    # Of weights, sample order, augmentation and label noise. The same seed gives the same run.
    cfg.SEED = 0

    # The method: "none" (the plain student), "kd", "dkd", "nkd", "sdd", "dkd_tckd", "dkd_nckd", "dkd_coupled",
    # "fitnet", "at", "rkd", "reviewkd", "mcld" or "hcd".
    # A file may also have a section METHODS, with settings that hold for one method alone, by its name: METHODS:
    # {kd: {CE_WEIGHT: 0.1}, sdd_kd: {CE_WEIGHT: 0.1}}. They come after all files and before the overrides.
    cfg.DISTILLER = "none"
    # Sun et al. 2024: student's and teacher's logits are standardised over the classes before any loss on logits.
    cfg.STANDARDIZE = False
    # Epochs over which the distillation terms' weight rises linearly: epoch e of them (from 1) has weight e / EPOCHS.
    cfg.WARMUP_EPOCHS = 0
    # Weight of the cross-entropy with the labels.
    cfg.CE_WEIGHT = 1.0

    _add_data(cfg)
    _add_models(cfg)
    _add_solver(cfg)
    _add_methods(cfg)
    DISTILLERS.add_sections(cfg)
    return cfg


def _add_data(cfg: CfgNode) -> None:
    cfg.DATA = CfgNode()
    # "digits" (embedded), "cifar100", "imagenet", "cub200", or "folder": your own train/CLASS/ and val/CLASS/.
    cfg.DATA.NAME = "digits"
    # The folder that has cifar-100-python, imagenet, CUB_200_2011 or, for "folder", train and val. "digits" needs none.
    cfg.DATA.ROOT = "datasets"
    # Height and width of the images. "digits" and "cifar100" take 32, the others what you like.
    cfg.DATA.IMAGE_SIZE = 32
    # Samples of an optimiser step's micro-batch, over all processes together.
    cfg.DATA.BATCH_SIZE = 64
    cfg.DATA.EVAL_BATCH_SIZE = 256
    # Worker processes of each training process, for data sets that are not kept in memory.
    cfg.DATA.WORKERS = 2
    # Cubuk et al. 2019: torchvision's policy for the data set, after the crop and flip.
    cfg.DATA.AUTO_AUGMENT = False
    # The fraction of training labels that is replaced by another class, drawn uniformly from SEED.
    cfg.DATA.LABEL_NOISE = 0.0
    # Zhao et al. 2022, section 4.1: the samples that are distilled, ranked by the teacher's probability of the label,
    # most confident first; (0.0, 0.5) is the more confident half. The cross-entropy sees all.
    cfg.DATA.CONFIDENCE_RANGE = (0.0, 1.0)


def _add_models(cfg: CfgNode) -> None:
    cfg.STUDENT = CfgNode()
    # A name from the literature ("resnet8x4"), "torchvision/NAME" or "timm/NAME".
    cfg.STUDENT.NAME = "resnet8"
    # Starts from the library's own ImageNet weights (torchvision's and timm's models).
    cfg.STUDENT.PRETRAINED = False
    # A model.pth to start from; with --eval-only, to evaluate. Empty: random weights, or OUTPUT_DIR's own model.pth.
    cfg.STUDENT.WEIGHTS = ""
    # First layers of the literature's models: "cifar", or "large" for images of 224 (a 7 x 7 convolution, stride 2).
    cfg.STUDENT.STEM = "cifar"
    # The size at which it sees the images, enlarged bilinearly; 0: as they come.
    cfg.STUDENT.IMAGE_SIZE = 0

    cfg.TEACHER = CfgNode()
    cfg.TEACHER.NAME = ""
    # The name of the run that trained it ("cifar100/vanilla_res32x4", for output/NAME/model.pth), or a path.
    cfg.TEACHER.WEIGHTS = ""
    # The library's own ImageNet weights (torchvision's and timm's models), instead of WEIGHTS.
    cfg.TEACHER.PRETRAINED = False
    # Trains it where output/ does not have it yet, by CONFIG_FILES, with this NAME, STEM and IMAGE_SIZE as STUDENT's.
    cfg.TEACHER.AUTO_TRAIN = False
    # Paths or shipped names of configurations, as for --config-file: ("cifar100/base.yaml",).
    cfg.TEACHER.CONFIG_FILES = ()
    cfg.TEACHER.STEM = "cifar"
    cfg.TEACHER.IMAGE_SIZE = 0


def _add_solver(cfg: CfgNode) -> None:
    cfg.SOLVER = CfgNode()
    cfg.SOLVER.EPOCHS = 240
    cfg.SOLVER.OPTIMIZER = "sgd"  # "sgd" (momentum, no Nesterov) or "adamw"
    cfg.SOLVER.LR = 0.05
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.WEIGHT_DECAY = 5e-4
    cfg.SOLVER.SCHEDULE = "step"  # "step" (times GAMMA after each of STEPS) or "cosine", epoch by epoch
    cfg.SOLVER.STEPS = (150, 180, 210)  # epochs
    cfg.SOLVER.GAMMA = 0.1
    # Micro-batches whose gradients are averaged into one step.
    cfg.SOLVER.ACCUMULATE = 1
    # The largest gradient norm; 0: not clipped.
    cfg.SOLVER.CLIP_GRAD_NORM = 0.0
    # "no", "fp16" or "bf16": Accelerate's automatic mixed precision.
    cfg.SOLVER.MIXED_PRECISION = "no"
    cfg.SOLVER.CHANNELS_LAST = False
    cfg.SOLVER.COMPILE = False  # torch.compile of both networks
    # Steps between checkpoints for --resume; 0: one at the end of each epoch.
    cfg.SOLVER.CHECKPOINT_PERIOD = 0
    # Epochs between evaluations; the last epoch is always evaluated.
    cfg.SOLVER.EVAL_PERIOD = 1

    # Also log to Weights & Biases, which must be installed. TensorBoard always.
    cfg.WANDB = False


def _add_methods(cfg: CfgNode) -> None:
    # Hinton et al. 2015: WEIGHT * T^2 * KL(teacher || student).
    cfg.KD = CfgNode()
    cfg.KD.WEIGHT = 1.0
    cfg.KD.TEMPERATURE = 4.0  # T

    # Zhao et al. 2022, eq. 7: WEIGHT * T^2 * (alpha * TCKD + beta * NCKD). "dkd_tckd" and "dkd_nckd" are one part
    # alone, with its ALPHA or BETA; "dkd_coupled" weighs NCKD by 1 - p_y, as KD does, instead of BETA.
    cfg.DKD = CfgNode()
    cfg.DKD.WEIGHT = 1.0
    cfg.DKD.ALPHA = 1.0
    cfg.DKD.BETA = 8.0
    cfg.DKD.TEMPERATURE = 4.0

    # Yang et al. 2023: WEIGHT * (target part + gamma * T^2 * non-target part).
    cfg.NKD = CfgNode()
    cfg.NKD.WEIGHT = 1.0
    cfg.NKD.GAMMA = 1.5
    cfg.NKD.TEMPERATURE = 1.0

    # Wei et al. 2024: WEIGHT * (D_con + beta * D_com) over the regions.
    cfg.SDD = CfgNode()
    cfg.SDD.WEIGHT = 1.0
    cfg.SDD.BASE = "dkd"  # the loss of a region, with that method's settings except WEIGHT: "kd", "dkd" or "nkd"
    cfg.SDD.SCALES = (1, 2, 4)  # m for m x m regions, the first 1
    cfg.SDD.COMPLEMENTARY_WEIGHT = 2.0  # beta

    # Romero et al. 2015: WEIGHT * mean squared error of one stage's map, the student's adapted by a convolution. The
    # weights of this and of the next two are those of the DKD paper's tables, from Tian et al. 2020.
    cfg.FITNET = CfgNode()
    cfg.FITNET.WEIGHT = 100.0
    cfg.FITNET.STAGE = 1  # from 0, the largest map; the tables take the second

    # Zagoruyko and Komodakis 2017: WEIGHT * squared distance of normalised attention maps, summed over the stages.
    cfg.AT = CfgNode()
    cfg.AT.WEIGHT = 1000.0
    cfg.AT.POWER = 2  # p: what the activations are raised to

    # Park et al. 2019: pairwise distances and angles of the pooled features.
    cfg.RKD = CfgNode()
    cfg.RKD.DISTANCE_WEIGHT = 25.0
    cfg.RKD.ANGLE_WEIGHT = 50.0

    # Chen et al. 2021: WEIGHT * HCL between the student's fused stage maps and pooled feature and the teacher's.
    cfg.REVIEWKD = CfgNode()
    cfg.REVIEWKD.WEIGHT = 1.0  # on CIFAR-100 chosen pair by pair: 5 for ResNet32x4 and ResNet8x4
    # In which the levels are mixed; 0: as many as the student's pooled feature has, 512 at the most.
    cfg.REVIEWKD.MID_CHANNELS = 0

    # Wang et al. 2024: WEIGHT * (instance + sample + category term), contrastive losses on L2-normalised logits.
    cfg.MCLD = CfgNode()
    cfg.MCLD.WEIGHT = 1.0
    cfg.MCLD.TEMPERATURE = 0.2  # tau
    cfg.MCLD.QUEUE = 0  # teacher logits of earlier steps that are kept as negatives; 0: as many as training samples
    # The cross-entropy with the labels beside it: off for strong teachers, on for ResNet56, ResNet110 and R34 to R18.
    cfg.MCLD.CE = False
    cfg.MCLD.INSTANCE = True
    cfg.MCLD.SAMPLE = True
    cfg.MCLD.CATEGORY = True

    # Xu et al. 2025: WEIGHT * (KD + sum over the sub-logits (KD + CE_WEIGHT * cross-entropy) + lambda * orthogonality).
    # The defaults are ours: we know the paper's abstract only.
    cfg.HCD = CfgNode()
    cfg.HCD.WEIGHT = 1.0
    cfg.HCD.N = 4  # n, the sub-logits
    cfg.HCD.TEMPERATURE = 4.0
    cfg.HCD.CE_WEIGHT = 1.0
    cfg.HCD.ORTHOGONAL_WEIGHT = 1.0  # lambda
    cfg.HCD.STAGE = -1  # the student's stage whose map is used, from 0, the largest map; -1: the last
    cfg.HCD.PROJECTOR_CHANNELS = 0  # 0: as many as the teacher's feature has


def load_config(config_files: str | Sequence[str] = (), overrides: Sequence[object] = ()) -> CfgNode:
    """The defaults, then ``config_files`` from left to right, then ``overrides`` (KEY VALUE ...).

    Args:
        config_files: paths, or names of shipped configurations ("cifar100/methods/dkd.yaml"); a string is one file.
        overrides: see above; a key that they set is not taken from any file.

    Raises:
        SetupError: a file does not exist or is not YAML, a key does not exist (the nearest is suggested), or a value
            is of the wrong type.
    """
    cfg = get_config()
    compose(cfg, config_files, overrides)
    return cfg
