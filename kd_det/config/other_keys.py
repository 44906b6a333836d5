"""The keys outside MODEL with the checks that need no other key.

Switches and free text are left out: only their type is checked. The KD terms check their own keys: see
``KDTerm.checks``.
"""

from __future__ import annotations

from typing import Any

from kd_det.common.errors import SetupError, below_one, non_negative, positive
from kd_det.common.setting_checks import (
    Check,
    choice,
    class_value,
    count,
    each,
    either,
    fraction,
    name_pairs,
    number,
    optional,
    overrides,
    positive_or_infinite,
    string,
)

# The image formats of Detectron2's reader, and how many channels each has.
CHANNELS = {"BGR": 3, "RGB": 3, "YUV-BT.601": 3, "YCbCr": 3, "HSV": 3, "L": 1, "RGBA": 4, "CMYK": 4}
SAMPLERS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)

names = each(string)
size = count(0, 2**16)  # pixels; 0: the image is not resized


def share(key: str, value: Any) -> None:
    """A number above 0, up to 1."""
    if not _is_number(value) or not 0 < value <= 1:
        raise SetupError(f"{key} is {value!r:.200}; it must be a number above 0, up to 1.")


def class_values(key: str, value: Any) -> None:
    """A list of entries that ``class_value`` accepts."""
    each(lambda _, entry: class_value(key, entry))(key, value)


def expected_result(key: str, value: Any) -> None:
    """[task, metric, value, tolerance]."""
    whole = isinstance(value, (list, tuple)) and len(value) == 4
    if not whole or not all(map(_is_number, value[2:])) or not all(isinstance(name, str) for name in value[:2]):
        raise SetupError(
            f"{key} is {value!r:.200}; it must be [task, metric, value, tolerance], such as ['bbox', 'AP', 38, 1]."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def version(key: str, value: Any) -> None:
    """The version of the keys that this Detectron2 uses."""
    if value != 2:
        raise SetupError(
            f"{key} is {value!r:.200}; this Detectron2 has the keys of version 2. Set it to 2. A file of version 1 "
            "says so itself, and is converted."
        )


INPUT_FORMAT: dict[str, Check] = {"INPUT.FORMAT": choice(*CHANNELS)}

OTHER: dict[str, Check] = {
    **INPUT_FORMAT,
    "VERSION": version,
    "INPUT.MIN_SIZE_TRAIN": each(size, least=1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": choice("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": count(1, 2**16),
    "INPUT.MIN_SIZE_TEST": size,
    "INPUT.MAX_SIZE_TEST": count(1, 2**16),
    "INPUT.RANDOM_FLIP": choice("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": choice("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": each(positive, lengths=(2,)),
    "INPUT.MASK_FORMAT": choice("polygon", "bitmask"),
    "DATASETS.TRAIN": names,
    "DATASETS.TEST": names,
    "DATASETS.UNLABELED": names,
    "DATASETS.PROPOSAL_FILES_TRAIN": names,
    "DATASETS.PROPOSAL_FILES_TEST": names,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": count(1),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": count(1),
    "DATALOADER.NUM_WORKERS": count(0, 1024),
    "DATALOADER.SAMPLER_TRAIN": choice(*SAMPLERS),
    "DATALOADER.REPEAT_THRESHOLD": fraction,
    "DATALOADER.RANDOM_SUBSET_RATIO": fraction,
    "SOLVER.LR_SCHEDULER_NAME": choice("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.MAX_ITER": count(0),
    "SOLVER.BASE_LR": non_negative,
    "SOLVER.BASE_LR_END": non_negative,
    "SOLVER.MOMENTUM": below_one,
    "SOLVER.WEIGHT_DECAY": non_negative,
    "SOLVER.WEIGHT_DECAY_NORM": non_negative,
    "SOLVER.WEIGHT_DECAY_BIAS": optional(non_negative),
    "SOLVER.GAMMA": number(0.0, 1000.0),
    "SOLVER.NUM_DECAYS": count(1),
    "SOLVER.STEPS": each(count(1)),
    "SOLVER.WARMUP_FACTOR": non_negative,
    "SOLVER.WARMUP_ITERS": count(0),
    "SOLVER.WARMUP_METHOD": choice("linear", "constant"),
    "SOLVER.CHECKPOINT_PERIOD": count(1),
    "SOLVER.IMS_PER_BATCH": count(1),
    "SOLVER.REFERENCE_WORLD_SIZE": count(0),
    "SOLVER.BIAS_LR_FACTOR": non_negative,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": choice("value", "norm"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": positive,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": positive_or_infinite,
    "TEST.EXPECTED_RESULTS": each(expected_result),
    "TEST.EVAL_PERIOD": count(0),
    "TEST.KEYPOINT_OKS_SIGMAS": each(positive),
    "TEST.DETECTIONS_PER_IMAGE": either(-1, count(1)),  # -1: all
    "TEST.AUG.MIN_SIZES": each(size, least=1),
    "TEST.AUG.MAX_SIZE": count(1, 2**16),
    "TEST.PRECISE_BN.NUM_ITER": count(1),
    "OUTPUT_DIR": string,
    "SEED": count(-(2**31), 2**31 - 1),  # below 0: a different seed in every run
    "VIS_PERIOD": count(0),
    "FLOAT32_PRECISION": choice("", "highest", "high", "medium"),
    "KD.TERMS": names,
    "KD.TEACHER.OPTS": overrides,
    "KD.TEACHER.CLASS_MAP": name_pairs,
    "KD.TEACHER.DTYPE": choice("auto", "float32", "bfloat16", "float16"),
    "KD.STORED.FRACTION": share,
    "KD.UNLABELED.BATCH_FRACTION": share,
    "KD.UNLABELED.THRESHOLD": below_one,
    "KD.UNLABELED.CLASS_THRESHOLDS": class_values,
}
