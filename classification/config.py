"""The configuration: its keys with their defaults, and how it is loaded. The methods' keys are in ``method_keys``."""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from classification.composition import compose
from classification.data.build import check_name
from classification.distillers import DISTILLERS, distiller_class
from classification.method_keys import add_method_keys
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
    add_method_keys(cfg)
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
