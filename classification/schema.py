"""The valid values of every configuration key. All keys are checked at start-up, whatever the method needs.

What depends on data or networks (that a stage exists, that a batch is not larger than the training set) is checked
where these are known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from fvcore.common.config import CfgNode

from classification.models.layers import STEMS
from kd_det.common.errors import SetupError, in_range, non_negative, one_of, positive, temperature, whole_number

Check = Callable[[str, Any], Any]
MOST_PIXELS = 4096


def flag(key: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise SetupError(f"{key} is {value!r}; it must be True or False.")


def text(key: str, value: Any) -> None:
    """Any text, which may be empty."""
    if not isinstance(value, str) or "\0" in value:
        raise SetupError(f"{key} is {value!r}; it must be text without zero bytes.")


def path(key: str, value: Any) -> None:
    """The path of a file or folder."""
    text(key, value)
    if not value:
        raise SetupError(f"{key} is empty; give a path.")


def below_one(key: str, value: Any) -> None:
    """A number, 0 or more and below 1."""
    non_negative(key, value)
    if value >= 1:
        raise SetupError(f"{key} is {value!r}; it must be from 0 to below 1.")


def fractions(key: str, value: Any) -> None:
    """(a, b) with 0 <= a < b <= 1."""
    numbers = isinstance(value, (tuple, list)) and all(isinstance(end, (int, float)) for end in value)
    if not numbers or len(value) != 2 or not 0 <= value[0] < value[1] <= 1:
        raise SetupError(f"{key} is {value!r}; it must be (a, b) with 0 <= a < b <= 1, such as (0.0, 0.5).")


def epochs(key: str, value: Any) -> None:
    """Increasing numbers of epochs, or none."""
    whole = isinstance(value, (tuple, list)) and all(type(epoch) is int and epoch > 0 for epoch in value)
    if not whole or any(a >= b for a, b in pairwise(value)):
        raise SetupError(f"{key} is {value!r}; it must be increasing whole numbers from 1, such as (150, 180, 210).")


def scales(key: str, value: Any) -> None:
    """1, then different whole numbers above 1."""
    whole = isinstance(value, (tuple, list)) and all(type(scale) is int and scale > 0 for scale in value)
    if not whole or tuple(value[:1]) != (1,) or len(set(value)) < len(value):
        raise SetupError(
            f"{key} is {value!r}; it must be 1, the whole image, and then different whole numbers, such as (1, 2, 4)."
        )


def whole(key: str, value: Any, least: int, most: int) -> None:
    """A whole number from ``least`` to ``most``."""
    whole_number(key, value, least)
    if value > most:
        raise SetupError(f"{key} is {value!r}; it must be at most {most}.")


def texts(key: str, value: Any) -> None:
    """A list of texts."""
    if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
        raise SetupError(f"{key} is {value!r}; it must be a list of texts, such as ['cifar100/base.yaml'].")


def temperatures(key: str, value: Any) -> None:
    """One temperature or more."""
    if not isinstance(value, (tuple, list)) or not value:
        raise SetupError(f"{key} is {value!r}; it must be a list of temperatures, such as (2.0, 4.0).")
    for item in value:
        temperature(key, item)


count = partial(whole_number, least=0)
at_least_one = partial(whole_number, least=1)
# Limits, so that a typing error does not take all memory or start thousands of processes.
pixels = partial(whole, least=0, most=MOST_PIXELS)
channels = partial(whole, least=0, most=65536)

SCHEMA: dict[str, Check] = {
    "OUTPUT_DIR": text,  # empty: named after the run
    "SEED": partial(whole, least=0, most=2**32 - 1),  # the seeds that every generator takes
    "DISTILLER": text,
    "STANDARDIZE": flag,
    "WARMUP_EPOCHS": count,
    "CE_WEIGHT": non_negative,
    "DATA.NAME": text,
    "DATA.ROOT": path,
    "DATA.IMAGE_SIZE": partial(whole, least=1, most=MOST_PIXELS),
    "DATA.BATCH_SIZE": at_least_one,
    "DATA.EVAL_BATCH_SIZE": at_least_one,
    "DATA.WORKERS": partial(whole, least=0, most=1024),
    "DATA.AUTO_AUGMENT": flag,
    "DATA.STRONG_VIEW": flag,
    "DATA.LABEL_NOISE": below_one,
    "DATA.LABEL_NOISE_SEED": partial(whole, least=0, most=2**32 - 1),
    "DATA.CONFIDENCE_RANGE": fractions,
    "STUDENT.NAME": text,
    "STUDENT.PRETRAINED": flag,
    "STUDENT.WEIGHTS": text,
    "STUDENT.STEM": partial(one_of, allowed=STEMS),
    "STUDENT.IMAGE_SIZE": pixels,
    "TEACHER.NAME": text,
    "TEACHER.WEIGHTS": text,
    "TEACHER.PRETRAINED": flag,
    "TEACHER.AUTO_TRAIN": flag,
    "TEACHER.CONFIG_FILES": texts,
    "TEACHER.STEM": partial(one_of, allowed=STEMS),
    "TEACHER.IMAGE_SIZE": pixels,
    "SOLVER.EPOCHS": at_least_one,
    "SOLVER.OPTIMIZER": partial(one_of, allowed=("sgd", "adamw")),
    "SOLVER.LR": positive,
    "SOLVER.MOMENTUM": below_one,
    "SOLVER.DOT_DELTA": below_one,
    "SOLVER.WEIGHT_DECAY": non_negative,
    "SOLVER.SCHEDULE": partial(one_of, allowed=("step", "cosine")),
    "SOLVER.STEPS": epochs,
    "SOLVER.GAMMA": positive,
    "SOLVER.ACCUMULATE": at_least_one,
    "SOLVER.CLIP_GRAD_NORM": non_negative,
    "SOLVER.MIXED_PRECISION": partial(one_of, allowed=("no", "fp16", "bf16")),
    "SOLVER.CHANNELS_LAST": flag,
    "SOLVER.COMPILE": flag,
    "SOLVER.CHECKPOINT_PERIOD": count,
    "SOLVER.EVAL_PERIOD": at_least_one,
    "SOLVER.SAVE_BEST": flag,
    "WANDB": flag,
    "KD.WEIGHT": non_negative,
    "KD.TEMPERATURE": temperature,
    "DKD.WEIGHT": non_negative,
    "DKD.ALPHA": non_negative,
    "DKD.BETA": non_negative,
    "DKD.TEMPERATURE": temperature,
    "NKD.WEIGHT": non_negative,
    "NKD.GAMMA": non_negative,
    "NKD.TEMPERATURE": temperature,
    "SDD.WEIGHT": non_negative,
    "SDD.BASE": partial(one_of, allowed=("kd", "dkd", "nkd")),
    "SDD.SCALES": scales,
    "SDD.REPEAT": flag,
    "SDD.COMPLEMENTARY_WEIGHT": non_negative,
    "FITNET.WEIGHT": non_negative,
    "FITNET.STAGE": count,
    "AT.WEIGHT": non_negative,
    "AT.STAGES": count,
    "AT.POWER": partial(whole, least=1, most=16),
    "RKD.DISTANCE_WEIGHT": non_negative,
    "RKD.ANGLE_WEIGHT": non_negative,
    "REVIEWKD.WEIGHT": non_negative,
    "REVIEWKD.MID_CHANNELS": channels,
    "REVIEWKD.STAGES": count,
    "REVIEWKD.PREACTIVATION": flag,
    "MCLD.WEIGHT": non_negative,
    "MCLD.TEMPERATURE": temperature,
    "MCLD.QUEUE": count,
    "MCLD.CE": flag,
    "MCLD.INSTANCE": flag,
    "MCLD.SAMPLE": flag,
    "MCLD.CATEGORY": flag,
    "MCLD.CATEGORY_NORM": partial(one_of, allowed=("counts", "supcon")),
    "HCD.WEIGHT": non_negative,
    "HCD.N": partial(whole, least=1, most=1024),
    "HCD.TEMPERATURE": temperature,
    "HCD.CE_WEIGHT": non_negative,
    "HCD.ORTHOGONAL_WEIGHT": non_negative,
    "HCD.STAGE": partial(whole_number, least=-1),
    "HCD.PROJECTOR_CHANNELS": channels,
    "SP.WEIGHT": non_negative,
    "NST.WEIGHT": non_negative,
    "PKT.WEIGHT": non_negative,
    "KDSVD.WEIGHT": non_negative,
    "KDSVD.K": at_least_one,
    "CRD.WEIGHT": non_negative,
    "CRD.FEATURE_DIM": partial(whole, least=1, most=65536),
    "CRD.NEGATIVES": partial(whole, least=1, most=2**20),
    "CRD.TEMPERATURE": temperature,
    "CRD.MOMENTUM": below_one,
    "VID.WEIGHT": non_negative,
    "VID.INIT_VARIANCE": partial(in_range, low=1e-4, high=1e6),
    "OFD.WEIGHT": non_negative,
    "OFD.STAGES": count,
    "SIMKD.WEIGHT": non_negative,
    "SIMKD.REDUCTION": at_least_one,
    "DIST.WEIGHT": non_negative,
    "DIST.INTER_WEIGHT": non_negative,
    "DIST.INTRA_WEIGHT": non_negative,
    "DIST.TEMPERATURE": temperature,
    "MLKD.WEIGHT": non_negative,
    "MLKD.TEMPERATURES": temperatures,
    "CTKD.WEIGHT": non_negative,
    "CTKD.START": partial(in_range, low=1e-3, high=1e4),
    "CTKD.SPAN": partial(in_range, low=0.0, high=1e4),
    "CTKD.EPOCHS": at_least_one,
    "CATKD.WEIGHT": non_negative,
    "CATKD.RESOLUTION": at_least_one,
    "CATKD.NORMALIZE": flag,
}


def checked(cfg: CfgNode, key: str) -> Any:
    """The value of ``key``, "SECTION.NAME".

    Raises:
        SetupError: it is not valid, whatever the data and networks are.
    """
    value: Any = cfg
    for name in key.split("."):
        value = value.get(name) if isinstance(value, CfgNode) else None  # an override can set a whole section to None
    SCHEMA[key](key, value)
    return value


def check_values(cfg: CfgNode) -> None:
    """Checks every key.

    Raises:
        SetupError: for the first that is not valid.
    """
    for key in SCHEMA:
        checked(cfg, key)
