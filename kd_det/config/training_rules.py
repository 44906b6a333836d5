"""Rules about several keys together that only training needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise

from detectron2.config import CfgNode

from kd_det.common.errors import SetupError
from kd_det.config.model_rules import NO_GENERATOR


def check_training(cfg: CfgNode, processes: int) -> None:
    """Checks the keys that training reads against each other. Each key has passed its own check.

    Args:
        processes: how many processes train together.

    Raises:
        SetupError: training cannot start with these settings, or would do nothing.
    """
    _batch(cfg, processes)
    if cfg.DATASETS.UNLABELED:
        _unlabeled(cfg)
        images_of_a_process(cfg, processes)
    for rule in RULES:
        rule(cfg)


def _batch(cfg: CfgNode, processes: int) -> None:
    images, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and images % reference:
        raise SetupError(
            f"SOLVER.IMS_PER_BATCH is {images}, which SOLVER.REFERENCE_WORLD_SIZE {reference} does not divide. Set it "
            f"to a multiple of {reference}."
        )
    if not reference and images % processes:
        raise SetupError(
            f"SOLVER.IMS_PER_BATCH is {images} for {processes} processes (--num-gpus): each gets the same number of "
            f"images. Set it to a multiple of {processes}."
        )


def _unlabeled(cfg: CfgNode) -> None:
    unlabeled, teacher = tuple(cfg.DATASETS.UNLABELED), cfg.KD.TEACHER
    both = [name for name in unlabeled if name in cfg.DATASETS.TRAIN]
    if both:
        raise SetupError(
            f"DATASETS.UNLABELED names {both[0]!r}, which DATASETS.TRAIN names too: its images have labels. Remove it "
            "from one of them."
        )
    if not teacher.STORED and not teacher.CONFIG_FILE:
        raise SetupError(
            f"DATASETS.UNLABELED is {unlabeled}, but there is no teacher whose detections would be its ground truth. "
            "Set KD.TEACHER.STORED, or KD.TEACHER.CONFIG_FILE and KD.TEACHER.WEIGHTS; or set it to ()."
        )
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == NO_GENERATOR:
        raise SetupError(
            f"DATASETS.UNLABELED is {unlabeled}, but MODEL.PROPOSAL_GENERATOR.NAME is {NO_GENERATOR}, and there are no "
            "such proposals for these images. Set the name to RPN, or DATASETS.UNLABELED to ()."
        )


def images_of_a_process(cfg: CfgNode, processes: int) -> tuple[int, int]:
    """How many labelled and how many unlabelled images each process has in a batch.

    Raises:
        SetupError: there would be none of one kind.
    """
    fraction, images = cfg.KD.UNLABELED.BATCH_FRACTION, cfg.SOLVER.IMS_PER_BATCH
    key = "SOLVER.REFERENCE_WORLD_SIZE" if cfg.SOLVER.REFERENCE_WORLD_SIZE else "--num-gpus"
    divisor = cfg.SOLVER.REFERENCE_WORLD_SIZE or processes
    each = images // divisor
    unlabeled = round(fraction * each)
    if not 0 < unlabeled < each:
        advice = f"Set the fraction to a value from {1 / each:.2g} to {1 - 1 / each:.2g}." if each > 1 else (
            f"Set SOLVER.IMS_PER_BATCH to {2 * divisor} or more."
        )  # fmt: skip
        raise SetupError(
            f"KD.UNLABELED.BATCH_FRACTION is {fraction} and each process has {each} images (SOLVER.IMS_PER_BATCH "
            f"{images} / {key} {divisor}): {fraction} * {each} rounds to {unlabeled} unlabelled images, which leaves "
            f"{each - unlabeled} labelled ones. Each process needs at least one of each. {advice}"
        )
    return each - unlabeled, unlabeled


def _length(cfg: CfgNode) -> None:
    if cfg.SOLVER.MAX_ITER < 1:
        raise SetupError(
            f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: there is nothing to train. Set it to 1 or more, or evaluate "
            "with --eval-only."
        )


def _schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        used = [step for step in solver.STEPS if step <= solver.MAX_ITER]  # Detectron2 leaves the others out
        ascending = all(low < high for low, high in pairwise(used))
        if not ascending or solver.MAX_ITER in used:
            raise SetupError(
                f"SOLVER.STEPS is {solver.STEPS} with SOLVER.MAX_ITER {solver.MAX_ITER}; it must be iterations in "
                "ascending order, all before the last."
            )
    end = solver.get("BASE_LR_END", 0.0)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and "BASE_LR_END" in solver and not 0 <= end <= solver.BASE_LR > 0:
        raise SetupError(
            f"SOLVER.BASE_LR_END is {end} with SOLVER.BASE_LR {solver.BASE_LR}; WarmupCosineLR needs a BASE_LR above 0 "
            "and an end that is no larger."
        )
    if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR" and not solver.GAMMA > 0:
        raise SetupError(f"SOLVER.GAMMA is {solver.GAMMA}; WarmupStepWithFixedGammaLR needs a number above 0.")
    if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR" and "NUM_DECAYS" not in solver:
        raise SetupError(
            "SOLVER.LR_SCHEDULER_NAME is WarmupStepWithFixedGammaLR, which this version of Detectron2 does not have. "
            "Take WarmupMultiStepLR."
        )


def _momentum(cfg: CfgNode) -> None:
    if cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        raise SetupError("SOLVER.NESTEROV is True with SOLVER.MOMENTUM 0.0; it needs a momentum above 0, such as 0.9.")


def _sizes(cfg: CfgNode) -> None:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or not 0 < sizes[0] <= sizes[1]):
        raise SetupError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}; with INPUT.MIN_SIZE_TRAIN_SAMPLING range it must be the smallest and "
            "the largest size, such as (640, 800)."
        )


def _crop(cfg: CfgNode) -> None:
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return
    if crop.TYPE.startswith("relative") and not all(side <= 1 for side in crop.SIZE):
        wanted = "shares of the image's sides, above 0 and up to 1"
    elif crop.TYPE.startswith("absolute") and not all(isinstance(side, int) for side in crop.SIZE):
        wanted = "whole numbers of pixels"
    elif crop.TYPE == "absolute_range" and crop.SIZE[0] > crop.SIZE[1]:
        wanted = "the smallest and the largest side, in pixels"
    else:
        return
    raise SetupError(f"INPUT.CROP.SIZE is {crop.SIZE}; with INPUT.CROP.TYPE {crop.TYPE} it must be {wanted}.")


def _sampler(cfg: CfgNode) -> None:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    section, key = {
        "RandomSubsetTrainingSampler": ("DATALOADER", "RANDOM_SUBSET_RATIO"),
        "WeightedTrainingSampler": ("DATASETS", "TRAIN_REPEAT_FACTOR"),
        "WeightedCategoryTrainingSampler": ("DATASETS", "TRAIN_REPEAT_FACTOR"),
    }.get(name, ("DATASETS", "TRAIN"))
    if key not in cfg[section]:  # Detectron2 reads them, but has no defaults for them
        raise SetupError(
            f"DATALOADER.SAMPLER_TRAIN is {name}, which needs a key {section}.{key} that this configuration does not "
            "have. Take TrainingSampler or RepeatFactorTrainingSampler."
        )


def _proposals(cfg: CfgNode) -> None:
    loads = cfg.MODEL.LOAD_PROPOSALS
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == NO_GENERATOR and not loads:
        raise SetupError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is {NO_GENERATOR}, but MODEL.LOAD_PROPOSALS is False: there are no "
            "proposals. Set the name to RPN, or load proposals and name their files in DATASETS.PROPOSAL_FILES_TRAIN "
            "and _TEST."
        )


def check_proposal_files(cfg: CfgNode, splits: Sequence[str]) -> None:
    """Checks that each data set has a file of proposals if MODEL.LOAD_PROPOSALS is True.

    Args:
        splits: "TRAIN", "TEST".

    Raises:
        SetupError: their numbers differ, or a file does not exist.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    for split in splits:
        key = f"DATASETS.PROPOSAL_FILES_{split}"
        files, sets = cfg.DATASETS[f"PROPOSAL_FILES_{split}"], cfg.DATASETS[split]
        if len(files) != len(sets):
            raise SetupError(
                f"MODEL.LOAD_PROPOSALS is True, but {key} has {len(files)} files for the {len(sets)} sets of "
                f"DATASETS.{split}. Name one for each, or set MODEL.LOAD_PROPOSALS False and "
                "MODEL.PROPOSAL_GENERATOR.NAME RPN."
            )
        for path in files:
            if not os.path.isfile(path):
                raise SetupError(f"{key}: there is no file {path!r}. Give the right path.")


RULES: Sequence[Callable[[CfgNode], None]] = (_length, _schedule, _momentum, _sizes, _crop, _sampler, _proposals)
