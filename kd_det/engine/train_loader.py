"""The training loader: Detectron2's for ``DATASETS.TRAIN``, and a second one for ``DATASETS.UNLABELED`` beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm

from kd_det.config.training_rules import images_of_a_process
from kd_det.data.knowledge import Knowledge
from kd_det.data.mapper import NamingDatasetMapper
from kd_det.data.pseudo_labels import UnlabeledDatasetMapper, class_thresholds, unlabeled_records
from kd_det.data.stored import StoredDatasetMapper, stored_records
from kd_det.engine.stopping import protect_workers
from kd_det.teacher.classes import checked_class_names, listed, shared_classes
from kd_det.teacher.config import live_terms, teacher_config
from kd_det.teacher.stored import distilled_stored_classes, open_stored

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]


class MixedBatches(Iterable[Batch]):
    """Batches of two loaders joined, the labelled images first."""

    def __init__(self, labeled: Iterable[Batch], unlabeled: Iterable[Batch]) -> None:
        self.labeled, self.unlabeled = labeled, unlabeled

    def __iter__(self) -> Iterator[Batch]:
        for ours, others in zip(self.labeled, self.unlabeled, strict=False):  # both are endless
            yield [*ours, *others]


def build_train_loader(cfg: CfgNode) -> Any:
    """The training loader of this process.

    Args:
        cfg: the student's configuration, with the data sets registered.

    Raises:
        SetupError: the stored knowledge lacks an image, or was made for another.
    """
    knowledge = open_stored(cfg) if cfg.KD.TEACHER.STORED else None
    if knowledge is not None and len(live_terms(cfg)) < len(cfg.KD.TERMS):
        logger.info(distilled_stored_classes(knowledge))
    if not cfg.DATASETS.UNLABELED:
        return _labeled_loader(cfg, knowledge)
    ours, others = images_of_a_process(cfg, comm.get_world_size())
    logger.info("Each process has %d labelled and %d unlabelled images in a batch", ours, others)
    _note_unknown_classes(cfg, knowledge)
    # The data workers are shared: each loader has at least one, if there are any.
    workers = cfg.DATALOADER.NUM_WORKERS
    for_others = min(max(round(workers * others / (ours + others)), 1), workers)
    part = cfg.clone()
    part.defrost()
    part.SOLVER.IMS_PER_BATCH = ours * comm.get_world_size()
    part.DATALOADER.NUM_WORKERS = max(workers - for_others, min(workers, 1))
    return MixedBatches(_labeled_loader(part, knowledge), _unlabeled_loader(cfg, knowledge, others, for_others))


def _labeled_loader(cfg: CfgNode, knowledge: Knowledge | None) -> Any:
    if knowledge is None:
        return protect_workers(build_detection_train_loader(cfg, mapper=NamingDatasetMapper(cfg, is_train=True)))
    records, mapper = stored_records(cfg, knowledge), StoredDatasetMapper(cfg, knowledge)
    return protect_workers(build_detection_train_loader(cfg, mapper=mapper, dataset=records))


def _unlabeled_loader(cfg: CfgNode, knowledge: Knowledge | None, images: int, workers: int) -> Any:
    mapper = NamingDatasetMapper(cfg, is_train=True)
    if knowledge is not None:
        mapper = UnlabeledDatasetMapper(cfg, knowledge, class_thresholds(cfg, checked_class_names(cfg)))
    return protect_workers(
        build_detection_train_loader(
            unlabeled_records(cfg.DATASETS.UNLABELED, knowledge),
            mapper=mapper,
            total_batch_size=images * comm.get_world_size(),
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=workers,
        )
    )


def _note_unknown_classes(cfg: CfgNode, knowledge: Knowledge | None) -> None:
    if knowledge is not None:
        known = knowledge.shared
    else:
        pairs = shared_classes(cfg, teacher_config(cfg))
        known = None if pairs is None else pairs.student
    names = checked_class_names(cfg) or [str(number) for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    unknown = [] if known is None else [name for number, name in enumerate(names) if number not in known]
    if unknown:
        logger.warning(
            "DATASETS.UNLABELED: the teacher does not know %s; such objects in unlabelled images are trained on as "
            "background", listed(unknown),
        )  # fmt: skip
