"""The work of ``kd-det store-teacher``, and how a command writes a folder of stored knowledge."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.structures import Boxes, BoxMode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import Tensor
from torch.utils.data import DataLoader

from kd_det.common.command_line import KEY
from kd_det.common.config_merge import merge_config
from kd_det.common.errors import SetupError, one_of, whole_number
from kd_det.common.files import remove_temporary_files, run_lock
from kd_det.data.checks import checked_records
from kd_det.data.image_sets import without_labels
from kd_det.data.knowledge_format import DTYPES, Recipe, StoredImage, row_bytes, shard_files
from kd_det.data.knowledge_writer import KnowledgeWriter
from kd_det.data.mapper import NamingDatasetMapper
from kd_det.engine.setup import read_setup
from kd_det.teacher.classes import CLASS_MAP, checked_class_names
from kd_det.teacher.ensemble import TeacherEnsemble, load_teacher_for_storing, views_of

logger = logging.getLogger(__name__)

OPTION = "--output"
PROGRESS_SECONDS = 10.0
COCO_IMAGES, COCO_CLASSES, COCO_OBJECTS = 118_287, 80, 7.3  # of train2017; objects for each image
Look = Callable[[dict[str, Any]], StoredImage]


def store_teacher(args: argparse.Namespace) -> None:
    """The work of each process of ``kd-det store-teacher``.

    Args:
        args: of ``kd_det.engine.commands.store_teacher``.

    Raises:
        SetupError: an option, a teacher or a data set is not valid, or the folder has other knowledge.
    """
    cfg = read_setup(args.config_file, args.opts, args.dataset, processes=args.num_gpus)
    setup_logger(distributed_rank=comm.get_rank(), name="kd_det")
    check_storing_options(args)
    views = views_of(args.views)
    if torch.cuda.is_available() and cfg.MODEL.DEVICE == "cuda":
        cfg.MODEL.DEVICE = f"cuda:{torch.cuda.current_device()}"
    with only_command(args.output):
        sets = _training_sets(cfg, args.images)
        ensemble = TeacherEnsemble(
            [load_teacher_for_storing(each) for each in _teacher_settings(cfg, args.teacher)], views,
            boxes=args.boxes, classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES, input_format=cfg.INPUT.FORMAT,
            device=torch.device(cfg.MODEL.DEVICE),
        )  # fmt: skip
        made_of = {
            "teachers": [teacher.about for teacher in ensemble.teachers],
            "views": [[view.short, view.flipped] for view in views],
            "boxes": args.boxes,
            "input_format": cfg.INPUT.FORMAT,
        }
        recipe = Recipe(student_names(cfg), ensemble.shared, args.top_k, args.dtype, made_of)

        def look(item: dict[str, Any]) -> StoredImage:
            try:
                return ensemble.look(_pixels(item["image"]), item["ground_truth"])
            except FloatingPointError as error:
                raise SetupError(f"KD.TEACHER: {error} on {item['file_name']!r}; is it trained?") from error

        write_knowledge(args, recipe, sets, look, _Read(cfg.INPUT.FORMAT), cfg.DATALOADER.NUM_WORKERS)


def check_storing_options(args: argparse.Namespace) -> None:
    """Raises ``SetupError`` if an option that both commands have is not valid."""
    whole_number("--boxes", args.boxes, 1)
    one_of("--dtype", args.dtype, DTYPES)
    whole_number("--top-k", args.top_k, 0)
    whole_number("--shard-images", args.shard_images, 1)


def only_command(folder: str) -> AbstractContextManager[None]:
    """Keeps other commands out of the folder; in the main process only."""
    return run_lock(folder, OPTION) if comm.is_main_process() else nullcontext()


def write_knowledge(
    args: argparse.Namespace,
    recipe: Recipe,
    sets: Mapping[str, Sequence[dict[str, Any]]],
    look: Look,
    read: Callable[[dict[str, Any]], dict[str, Any]],
    workers: int,
) -> None:
    """Writes the shards that are missing, each process its own, and then the index. Logs progress, size and time.

    Args:
        args: of the command: "output", "command", "boxes", "top_k", "dtype", "shard_images".
        recipe: of the knowledge.
        sets: the records of each data set.
        look: gives the content of an image from what ``read`` returned.
        read: called on each record, in a data worker if there are any.
        workers: number of data workers.
    """
    if comm.is_main_process():
        remove_temporary_files(args.output)
    writer = KnowledgeWriter(args.output, recipe, sets, command=args.command, shard_images=args.shard_images)
    parts = comm.all_gather(writer.missing())[0]  # after all have seen the folder, before any writes
    mine = parts[comm.get_rank() :: comm.get_world_size()]
    total = sum(map(len, sets.values()))
    to_do = sum(len(part.positions) for part in parts)
    logger.info("%s %r: %d of %d images are stored, %d remain", OPTION, args.output, total - to_do, total, to_do)
    progress = _Progress(sum(len(part.positions) for part in mine))
    records = [sets[part.dataset][position] for part in mine for position in part.positions]
    items = iter(_loader(records, read, workers) if records else ())
    for part in mine:
        images = []
        for _ in part.positions:
            images.append(look(next(items)))
            progress.note()
        writer.write(part, images)
    comm.synchronize()
    if comm.is_main_process():
        _report(args, writer.finish(), progress)
    comm.synchronize()


def _loader(records: list[dict[str, Any]], read: Callable[[dict[str, Any]], Any], workers: int) -> DataLoader[Any]:
    images = MapDataset(DatasetFromList(records, copy=False), read)
    return DataLoader(images, batch_size=None, num_workers=min(workers, len(records)), collate_fn=as_it_is)


def as_it_is(item: Any) -> Any:
    """``item``; a function of its own, so that data workers can be spawned."""
    return item


@dataclass(frozen=True)
class _Read:
    """Reads the image of a record, and its objects' boxes; a class, so that data workers can be spawned."""

    input_format: str

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        mapper = NamingDatasetMapper(is_train=False, augmentations=[], image_format=self.input_format)
        return {**mapper(record), "ground_truth": _ground_truth(record)}


def _ground_truth(record: Mapping[str, Any]) -> Tensor:
    """(G, 4) XYXY of the objects that training has: no crowds, and none without area."""
    objects = [item for item in record.get("annotations", ()) if not item.get("iscrowd", 0)]
    corners = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in objects]
    boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
    boxes.clip((int(record["height"]), int(record["width"])))
    return boxes[boxes.nonempty()].tensor


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


class _Progress:
    """Logs how far this process is, and when it will be done."""

    def __init__(self, images: int) -> None:
        self.images, self.done = images, 0
        self.start = self.logged = time.monotonic()

    @property
    def seconds(self) -> float:
        """For an image, in this process."""
        return (time.monotonic() - self.start) / max(self.done, 1)

    def note(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.logged >= PROGRESS_SECONDS or self.done == self.images:
            self.logged = now
            left = timedelta(seconds=round((self.images - self.done) * self.seconds))
            logger.info("%d of %d images  %.3f s an image  eta: %s", self.done, self.images, self.seconds, left)


def _report(args: argparse.Namespace, images: int, progress: _Progress) -> None:
    size = sum(path.stat().st_size for path in shard_files(args.output))
    logger.info("%s %r is complete: %d images, %.1f KB an image", OPTION, args.output, images, size / images / 1e3)
    each = (args.boxes + COCO_OBJECTS) * row_bytes(COCO_CLASSES, args.top_k, args.dtype)
    hours = (
        f"{COCO_IMAGES * progress.seconds / 3600:.1f} hours of one such process" if progress.done else "no new image"
    )
    logger.info(
        "By calculation, COCO train2017 (%d images, %d classes, %d boxes and the objects') takes %.1f KB an image, "
        "%.2f GB; at the time measured here (%.3f s an image), %s",
        COCO_IMAGES, COCO_CLASSES, args.boxes, each / 1e3, COCO_IMAGES * each / 1e9, progress.seconds, hours,
    )  # fmt: skip


def _training_sets(cfg: CfgNode, images: int | None) -> dict[str, list[dict[str, Any]]]:
    """The records of ``DATASETS.TRAIN``, and those of ``DATASETS.UNLABELED`` without annotations."""
    if images is not None:
        whole_number("--images", images, 1)
    sets = {}
    for key in ("TRAIN", "UNLABELED"):
        for name in cfg.DATASETS[key]:
            records = checked_records(f"DATASETS.{key}", name)[:images]
            sets[name] = records if key == "TRAIN" else without_labels(records)
    if not sets:
        raise SetupError("DATASETS.TRAIN is empty; name the data sets whose images the teacher shall look at.")
    return sets


def _teacher_settings(cfg: CfgNode, given: Sequence[Sequence[str]]) -> Iterator[CfgNode]:
    """A copy of ``cfg`` for each ``--teacher``, or ``cfg`` if there is none."""
    if not given:
        if not cfg.KD.TEACHER.CONFIG_FILE:
            raise SetupError(
                "there is no teacher: KD.TEACHER.CONFIG_FILE is empty. Set it, or give --teacher CONFIG_FILE WEIGHTS."
            )
        yield cfg
    for config_file, *rest in given:
        weights = rest.pop(0) if len(rest) % 2 else ""
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        wrong = next((key for key, _ in pairs if not KEY.fullmatch(key)), None)
        if wrong is not None:
            raise SetupError(f"--teacher {config_file} {weights}: {wrong!r} is no key. Write KEY VALUE pairs.")
        each = cfg.clone()
        each.KD.TEACHER.CONFIG_FILE, each.KD.TEACHER.WEIGHTS = config_file, weights
        each.KD.TEACHER.OPTS = [part for pair in pairs if pair[0] != CLASS_MAP for part in pair]
        classes = [part for pair in pairs if pair[0] == CLASS_MAP for part in pair]
        merge_config(each, "", classes, source="--teacher")
        yield each


def student_names(cfg: CfgNode) -> tuple[str, ...]:
    """The student's class names; if they are not known, their numbers."""
    return tuple(checked_class_names(cfg) or map(str, range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)))
