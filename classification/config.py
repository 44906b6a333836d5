"""The configuration: every key with its default, and how it is loaded. Greek letters are the papers' symbols."""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from classification.composition import compose
from classification.data.build import check_name
from classification.distillers import DISTILLERS, distiller_class
from classification.schema import check_values


def get_config() -> CfgNode:
    """A configuration with every key at its default, those of imported distillers included."""
    cfg = CfgNode()
    # The folder of checkpoints, TensorBoard curves and result.json. Empty: output/DATA/METHOD_TEACHER_STUDENT, such as
    # output/cifar100/dkd_res32x4_res8x4, or output/cifar100/vanilla_res8x4 for a model alone.
    cfg.OUTPUT_DIR = ""
    # The seed of weights, sample order and augmentation. The same seed gives the same run.
    cfg.SEED = 0

    # The method: "none" (the plain student), "kd", "dkd", "nkd", "sdd", "dkd_tckd", "dkd_nckd", "dkd_coupled",
    # "fitnet", "at", "rkd", "reviewkd", "mcld", "hcd", "sp", "nst", "pkt", "kdsvd", "vid", "ofd", "simkd", "crd",
    # "dist", "mlkd", "ctkd" or "catkd". Several at once are joined by +, each with its own WEIGHT: "sdd+reviewkd".
    # A file may also have a section METHODS with settings for single methods: METHODS: {kd: {CE_WEIGHT: 0.1}, sdd_kd:
    # {CE_WEIGHT: 0.1}}. They are merged after all files and before the overrides.
    cfg.DISTILLER = "none"
    # Sun et al. 2024: standardises the logits of student and teacher over the classes before any loss on logits.
    cfg.STANDARDIZE = False
    # Epochs of a linear warm-up of the distillation terms: epoch e (from 1) has the factor e / WARMUP_EPOCHS.
    cfg.WARMUP_EPOCHS = 0
    # The weight of the cross-entropy with the labels.
    cfg.CE_WEIGHT = 1.0

    _add_data(cfg)
    _add_models(cfg)
    _add_solver(cfg)
    _add_methods(cfg)
    DISTILLERS.add_sections(cfg)
    return cfg


def _add_data(cfg: CfgNode) -> None:
    cfg.DATA = CfgNode()
    # "digits" (part of scikit-learn), "cifar100", "imagenet", "cub200", or "folder": your train/CLASS/ and val/CLASS/.
    cfg.DATA.NAME = "digits"
    # The folder that has cifar-100-python, imagenet, CUB_200_2011 or, for "folder", train and val. "digits" needs none.
    cfg.DATA.ROOT = "datasets"
    # Height and width of the images in pixels. "digits" and "cifar100" need 32, the others take any size.
    cfg.DATA.IMAGE_SIZE = 32
    # Samples of a micro-batch, over all processes together. A step has SOLVER.ACCUMULATE micro-batches.
    cfg.DATA.BATCH_SIZE = 64
    cfg.DATA.EVAL_BATCH_SIZE = 256
    # Data workers of each training process, for data sets that are not kept in memory.
    cfg.DATA.WORKERS = 2
    # Cubuk et al. 2019: applies the policy for the data set after crop and flip. What it uncovers is grey (128).
    cfg.DATA.AUTO_AUGMENT = False
    # Jin et al. 2023: a second, strongly augmented view of each image, on which the cross-entropy is taken too. For
    # "mlkd" alone. It makes the pipeline of small images many times slower.
    cfg.DATA.STRONG_VIEW = False
    # The fraction of training labels that are replaced by a different class, drawn uniformly.
    cfg.DATA.LABEL_NOISE = 0.0
    # The seed of LABEL_NOISE, apart from SEED: teacher and students of every SEED are trained on the same labels.
    cfg.DATA.LABEL_NOISE_SEED = 0
    # Zhao et al. 2022, section 3.2: the range of training samples that are distilled, ranked by the teacher's
    # probability of the label, the most confident first. (0.0, 0.5) is the more confident half. The cross-entropy uses
    # all samples. The distillation terms are means over a batch's chosen samples, not over the batch: the sum of their
    # weights beside the cross-entropy is the same for a half as for the whole.
    cfg.DATA.CONFIDENCE_RANGE = (0.0, 1.0)


def _add_models(cfg: CfgNode) -> None:
    cfg.STUDENT = CfgNode()
    # A name from the literature ("resnet8x4"), "torchvision/NAME" or "timm/NAME".
    cfg.STUDENT.NAME = "resnet8"
    # Start from the library's ImageNet weights (models of torchvision and timm).
    cfg.STUDENT.PRETRAINED = False
    # A model.pth to start from or, with --eval-only, to evaluate. Empty: random weights; OUTPUT_DIR's model.pth.
    cfg.STUDENT.WEIGHTS = ""
    # The first layers of the literature's models: "cifar"; for images of 224 "large" (7 x 7 convolution with stride 2,
    # max-pooling) or "cub" (the code of Wei et al. 2024 for CUB-200: no max-pooling, VGG as for CIFAR).
    cfg.STUDENT.STEM = "cifar"
    # The size to which its images are resized, bilinearly. 0: they are not resized.
    cfg.STUDENT.IMAGE_SIZE = 0

    cfg.TEACHER = CfgNode()
    cfg.TEACHER.NAME = ""
    # The name of the run that trained it ("cifar100/vanilla_res32x4", for output/NAME/model.pth), or a path, such as
    # that of a run's model_best.pth.
    cfg.TEACHER.WEIGHTS = ""
    # Use the library's ImageNet weights (models of torchvision and timm) instead of WEIGHTS.
    cfg.TEACHER.PRETRAINED = False
    # Train the teacher first if output/ does not have it, with CONFIG_FILES and its NAME, STEM and IMAGE_SIZE, on these
    # DATA: data set, size, label noise, and AUTO_AUGMENT unless CONFIG_FILES set it. WEIGHTS is then the name of a run,
    # or output/NAME/model_best.pth for its best epoch. A file that is there, imported or given, is never replaced.
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
    # Zhao et al. 2023 (DOT): MOMENTUM is less by this for the cross-entropy's gradient and more by this for the
    # distillation's. 0: one momentum for their sum. "sgd" only.
    cfg.SOLVER.DOT_DELTA = 0.0
    cfg.SOLVER.WEIGHT_DECAY = 5e-4
    cfg.SOLVER.SCHEDULE = "step"  # "step" (times GAMMA after each of STEPS) or "cosine", updated every epoch
    cfg.SOLVER.STEPS = (150, 180, 210)  # epochs
    cfg.SOLVER.GAMMA = 0.1
    # The number of micro-batches whose gradients are averaged in a step.
    cfg.SOLVER.ACCUMULATE = 1
    # The largest norm of the gradient; 0: no clipping.
    cfg.SOLVER.CLIP_GRAD_NORM = 0.0
    # "no", "fp16" or "bf16": Accelerate's automatic mixed precision.
    cfg.SOLVER.MIXED_PRECISION = "no"
    cfg.SOLVER.CHANNELS_LAST = False
    cfg.SOLVER.COMPILE = False  # torch.compile of both networks
    # Steps between checkpoints for --resume; 0: one at the end of each epoch.
    cfg.SOLVER.CHECKPOINT_PERIOD = 0
    # Epochs between evaluations; the last epoch is always evaluated.
    cfg.SOLVER.EVAL_PERIOD = 1
    # Also keep model_best.pth, from the epoch with the highest accuracy. It is chosen on the evaluated images, so its
    # accuracy is optimistic. Zhao et al. 2022 take it for the teachers on noisy labels (section A.4).
    cfg.SOLVER.SAVE_BEST = False

    # Also log to Weights & Biases, which must be installed. TensorBoard logs are always written.
    cfg.WANDB = False


def _add_methods(cfg: CfgNode) -> None:
    # Hinton et al. 2015: WEIGHT * T^2 * KL(teacher || student).
    cfg.KD = CfgNode()
    cfg.KD.WEIGHT = 1.0
    cfg.KD.TEMPERATURE = 4.0  # T

    # Zhao et al. 2022, eq. 7: WEIGHT * T^2 * (alpha * TCKD + beta * NCKD). "dkd_tckd" and "dkd_nckd" are WEIGHT * T^2 *
    # one part alone, without ALPHA and BETA; in "dkd_coupled" the weight of NCKD is 1 - p_y, as in KD, not BETA.
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
    # Allow scales larger than a map's side: adaptive pooling repeats its positions, as in the published code.
    cfg.SDD.REPEAT = False
    cfg.SDD.COMPLEMENTARY_WEIGHT = 2.0  # beta

    # Romero et al. 2015: WEIGHT * mean squared error of one stage's map, the student's adapted by a convolution. The
    # weights of FITNET, AT and RKD are those of the DKD paper's tables, from Tian et al. 2020.
    cfg.FITNET = CfgNode()
    cfg.FITNET.WEIGHT = 100.0
    cfg.FITNET.STAGE = 1  # from 0, the largest map; the tables use the second stage

    # Zagoruyko and Komodakis 2017: WEIGHT * squared distance of normalised attention maps, summed over the stages.
    cfg.AT = CfgNode()
    cfg.AT.WEIGHT = 1000.0
    cfg.AT.STAGES = 0  # the last stages that are compared; 0: all, of networks with equally many
    cfg.AT.POWER = 2  # p, the exponent of the activations

    # Park et al. 2019: pairwise distances and angles of the pooled features.
    cfg.RKD = CfgNode()
    cfg.RKD.DISTANCE_WEIGHT = 25.0
    cfg.RKD.ANGLE_WEIGHT = 50.0

    # Chen et al. 2021: WEIGHT * HCL between the student's fused stage maps and pooled feature and the teacher's.
    cfg.REVIEWKD = CfgNode()
    cfg.REVIEWKD.WEIGHT = 1.0  # on CIFAR-100 chosen pair by pair: 5 for ResNet32x4 and ResNet8x4
    # Channels of the fusion; 0: as many as the student's pooled feature has, at most 512.
    cfg.REVIEWKD.MID_CHANNELS = 0
    cfg.REVIEWKD.STAGES = 0  # the last stages that are compared; 0: all, of networks with equally many
    # Fuse the student's maps before their last ReLU, as the published code does on ImageNet. The teacher's always are.
    cfg.REVIEWKD.PREACTIVATION = False

    # Wang et al. 2024: WEIGHT * (instance + sample + category term), contrastive losses on L2-normalised logits.
    cfg.MCLD = CfgNode()
    cfg.MCLD.WEIGHT = 1.0
    cfg.MCLD.TEMPERATURE = 0.2  # tau
    cfg.MCLD.QUEUE = 0  # earlier teacher logits that are kept as negatives; 0: as many as training samples
    # Add the cross-entropy with the labels: False for strong teachers, True for ResNet56, ResNet110 and R34 to R18.
    cfg.MCLD.CE = False
    # The three terms. With all of them False the student is a plain one, with the cross-entropy whatever CE is.
    cfg.MCLD.INSTANCE = True
    cfg.MCLD.SAMPLE = True
    cfg.MCLD.CATEGORY = True
    # "counts": the category term compares the mean over positives with the mean over negatives, as the paper's text
    # says; "supcon": the supervised contrastive loss of Khosla et al. 2020, which it cites.
    cfg.MCLD.CATEGORY_NORM = "counts"

    # Xu et al. 2025: WEIGHT * (KD + sum over the sub-logits (KD + CE_WEIGHT * cross-entropy) + lambda * orthogonality).
    # The defaults are ours: only the paper's abstract is known to us.
    cfg.HCD = CfgNode()
    cfg.HCD.WEIGHT = 1.0
    cfg.HCD.N = 4  # n, the sub-logits
    cfg.HCD.TEMPERATURE = 4.0
    cfg.HCD.CE_WEIGHT = 1.0
    cfg.HCD.ORTHOGONAL_WEIGHT = 1.0  # lambda
    cfg.HCD.STAGE = -1  # the student's stage whose map is used, from 0, the largest map; -1: the last
    cfg.HCD.PROJECTOR_CHANNELS = 0  # 0: as many as the teacher's feature has

    _add_relations(cfg)
    _add_imitation(cfg)
    _add_levels(cfg)


def _add_relations(cfg: CfgNode) -> None:
    # Tung and Mori 2019: WEIGHT * mean squared error of the similarities of samples, on the last stage's map. The
    # weights of SP, NST, PKT, KDSVD, VID and CRD are those of Tian et al. 2020 for CIFAR-100.
    cfg.SP = CfgNode()
    cfg.SP.WEIGHT = 3000.0

    # Huang and Wang 2017: WEIGHT * squared MMD of the channels, summed over the stages.
    cfg.NST = CfgNode()
    cfg.NST.WEIGHT = 50.0

    # Passalis and Tefas 2018: WEIGHT * divergence of the samples' similarities, on the pooled features.
    cfg.PKT = CfgNode()
    cfg.PKT.WEIGHT = 30000.0

    # Lee et al. 2018: WEIGHT * squared error of the relations of singular vectors of consecutive stages.
    cfg.KDSVD = CfgNode()
    cfg.KDSVD.WEIGHT = 1.0
    cfg.KDSVD.K = 1  # k, the vectors of a map

    # Tian et al. 2020: WEIGHT * noise-contrastive estimation on embedded pooled features.
    cfg.CRD = CfgNode()
    cfg.CRD.WEIGHT = 0.8
    cfg.CRD.FEATURE_DIM = 128  # of the embeddings
    cfg.CRD.NEGATIVES = 16384  # K, of a sample, from other classes
    cfg.CRD.TEMPERATURE = 0.07  # tau
    cfg.CRD.MOMENTUM = 0.5  # of the memories


def _add_imitation(cfg: CfgNode) -> None:
    # Ahn et al. 2019: WEIGHT * minus log-likelihood of the teacher's stage maps, summed over the stages.
    cfg.VID = CfgNode()
    cfg.VID.WEIGHT = 1.0
    cfg.VID.INIT_VARIANCE = 5.0  # of each channel; it is learned

    # Heo et al. 2019: WEIGHT * partial squared distance of the stage maps before their last ReLU.
    cfg.OFD = CfgNode()
    cfg.OFD.WEIGHT = 0.001
    cfg.OFD.STAGES = 0  # the last stages that are compared; 0: as many as both networks have

    # Chen et al. 2022: WEIGHT * mean squared error of the projected map. The student gets the teacher's classifier.
    # CE_WEIGHT is 0 there.
    cfg.SIMKD = CfgNode()
    cfg.SIMKD.WEIGHT = 1.0
    cfg.SIMKD.REDUCTION = 2  # the projector is narrower than the teacher's map by this factor


def _add_levels(cfg: CfgNode) -> None:
    # Huang et al. 2022: WEIGHT * T^2 * (beta * inter-class + gamma * intra-class part), 1 - Pearson correlation each.
    cfg.DIST = CfgNode()
    cfg.DIST.WEIGHT = 2.0
    cfg.DIST.INTER_WEIGHT = 1.0  # beta
    cfg.DIST.INTRA_WEIGHT = 1.0  # gamma
    cfg.DIST.TEMPERATURE = 4.0  # T; on ImageNet 1

    # Jin et al. 2023: WEIGHT * (KD + relations of samples + relations of classes), summed over the temperatures.
    cfg.MLKD = CfgNode()
    cfg.MLKD.WEIGHT = 0.9
    cfg.MLKD.TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)

    # Li et al. 2023: WEIGHT * KD at T = START + SPAN * sigmoid(theta), whose gradient is reversed, with a factor that
    # rises from 0 to 1 over EPOCHS.
    cfg.CTKD = CfgNode()
    cfg.CTKD.WEIGHT = 0.9
    cfg.CTKD.START = 1.0
    cfg.CTKD.SPAN = 20.0
    cfg.CTKD.EPOCHS = 10  # on ImageNet 5

    # Guo et al. 2023: WEIGHT * mean squared error of the class activation maps, pooled to RESOLUTION x RESOLUTION.
    cfg.CATKD = CfgNode()
    cfg.CATKD.WEIGHT = 400.0  # with CATKD.NORMALIZE; the published code chooses it pair by pair
    cfg.CATKD.RESOLUTION = 2
    cfg.CATKD.NORMALIZE = True  # divide each class's map by its norm


def load_config(config_files: str | Sequence[str] = (), overrides: Sequence[object] = ()) -> CfgNode:
    """The defaults, then ``config_files`` from left to right, then ``overrides`` (KEY VALUE ...).

    Args:
        config_files: paths, or names of shipped configurations ("cifar100/methods/dkd.yaml"); a string is one file.
        overrides: KEY VALUE ...; they replace the values of the files.

    Raises:
        SetupError: a file does not exist or is not YAML, a key does not exist (the nearest is suggested), or a value
            has the wrong type.
    """
    cfg = get_config()
    compose(cfg, config_files, overrides)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Checks every key. What depends on data and networks is checked when they are built.

    Raises:
        SetupError: for the first key that is not valid.
    """
    check_values(cfg)
    DISTILLERS.check_sections(cfg)
    distiller_class(cfg.DISTILLER)
    check_name(cfg)
