"""Draws ground truth, teacher and student side by side, one picture for each image."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import BoxMode
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL.Image import DecompressionBombError

from kd_det.checkpoint import load_strictly
from kd_det.common.command_line import output_folder
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically
from kd_det.config import plain_config
from kd_det.data.checks import checked_records
from kd_det.data.mapper import read_image
from kd_det.modeling.drawing import Panel, side_by_side
from kd_det.teacher.classes import class_names
from kd_det.teacher.config import teacher_config
from kd_det.teacher.frozen import check_heads

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
UNREADABLE = (OSError, ValueError, SyntaxError, DecompressionBombError)  # what Pillow raises for damaged files
PALETTE = [to_rgb(colormaps[name](index)) for name, size in (("tab10", 10), ("Dark2", 8)) for index in range(size)]


class PanelDetector:
    """A trained detector whose detections are drawn in a panel.

    Args:
        title: written above its picture.
        cfg: a plain configuration; its ``MODEL.WEIGHTS`` is not used.
        weights: path or URL of the checkpoint.
        key: the option or key that named it, for errors.
        names: the classes' names; None: their numbers.
        threshold: detections with lower scores are left out.

    Raises:
        SetupError: the checkpoint cannot be read or is not of this architecture.
    """

    def __init__(
        self, title: str, cfg: CfgNode, weights: str, key: str, names: Sequence[str] | None, threshold: float
    ) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = ""
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
        self.title, self.names = title, names
        self.predictor = DefaultPredictor(cfg)
        load_strictly(self.predictor.model, weights, key)

    def panel(self, image: np.ndarray) -> Panel:
        """The detections on an image, (H, W, 3) uint8, BGR."""
        found = self.predictor(image)["instances"].to("cpu")
        named = [_name(self.names, index) for index in found.pred_classes.tolist()]
        labels = [f"{name} {score:.0%}" for name, score in zip(named, found.scores.tolist(), strict=True)]
        return Panel(self.title, found.pred_boxes.tensor.numpy(), labels, [_colour(name) for name in named])


def visualize(
    cfg: CfgNode, weights: str, inputs: Iterable[str], output: str, threshold: float, datasets: Sequence[str] = ()
) -> list[Path]:
    """Writes a PNG for each image: its ground truth, the teacher's detections and the student's.

    The ground truth is drawn for images of ``DATASETS.TEST`` and ``datasets``, the teacher's if ``cfg`` names one.

    Args:
        cfg: the student's configuration.
        weights: the student's checkpoint; empty: ``model_final.pth`` in ``OUTPUT_DIR``.
        inputs: images, or folders of images, their sub-folders included.
        output: folder for the pictures, with the sub-folders of the inputs; created if missing.
        threshold: lowest score of a detection to draw.
        datasets: names of further registered sets with ground truth.

    Returns:
        the files written, in the order of the inputs.

    Raises:
        SetupError: an input, a checkpoint or a configuration is missing or invalid, or ``output`` is not writable.
    """
    if not 0 <= threshold <= 1:
        raise SetupError(f"--threshold is {threshold}; it must be from 0 to 1.")
    found = _found(inputs, Path(output).resolve())
    truth = _ground_truth([*cfg.DATASETS.TEST, *datasets])
    detectors = _detectors(cfg, weights, threshold)
    folder = output_folder("--output", output)
    written = []
    for (path, _), target in zip(found, _targets([name for _, name in found], folder), strict=True):
        image = _read(path)
        known = truth.get(os.path.realpath(path))
        panels = [] if known is None else [_truth_panel(*known)]
        panels += [detector.panel(image) for detector in detectors]
        _, content = cv2.imencode(".png", side_by_side(image[..., ::-1], panels)[..., ::-1])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content.data)
        written.append(target)
        gc.collect()  # the panels' figures are reference cycles: see DistillRCNN
    return written


def image_files(inputs: Iterable[str]) -> list[Path]:
    """The images among ``inputs``, and those in the folders among them and their sub-folders, sorted by path.

    Raises:
        SetupError: an input does not exist, or a folder has no image.
    """
    return [file for file, _ in _found(inputs)]


def _found(inputs: Iterable[str], without: Path | None = None) -> list[tuple[Path, Path]]:
    """Each image and its path relative to its input, except images in the folder ``without``."""
    files: list[tuple[Path, Path]] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = [file for file in _below(path) if without is None or not file.resolve().is_relative_to(without)]
            if not inside:
                raise SetupError(
                    f"--input: the folder '{path}' and its sub-folders have no image ({', '.join(SUFFIXES)})."
                )
            files += [(file, file.relative_to(path)) for file in inside]
        elif path.is_file():
            files.append((path, Path(path.name)))
        else:
            raise SetupError(f"--input: there is no '{path}'. Give images, or folders of images.")
    return files


def _below(folder: Path) -> list[Path]:
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES and file.is_file())


def _targets(names: Sequence[Path], output: Path) -> list[Path]:
    """One PNG for each image, with a number if several images have the same name."""
    targets: dict[Path, None] = {}
    for name in names:
        target, number = output / name.with_suffix(".png"), 1
        while target in targets:
            number += 1
            target = output / name.with_name(f"{name.stem}_{number}.png")
        targets[target] = None
    return list(targets)


def _detectors(cfg: CfgNode, weights: str, threshold: float) -> list[PanelDetector]:
    weights = weights or os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    student = PanelDetector("student", plain_config(cfg), weights, "--weights", class_names(cfg), threshold)
    if not cfg.KD.TEACHER.CONFIG_FILE:
        return [student]
    theirs = teacher_config(cfg)
    teacher = PanelDetector(
        "teacher", theirs, theirs.MODEL.WEIGHTS, "KD.TEACHER.WEIGHTS", class_names(theirs), threshold
    )
    check_heads(teacher.predictor.model, cfg.KD.TEACHER.CONFIG_FILE)
    return [teacher, student]


def _ground_truth(datasets: Sequence[str]) -> dict[str, tuple[dict[str, Any], Sequence[str] | None]]:
    """From the real path of an image to its record and the class names of its set."""
    known = {}
    for name in datasets:
        records = checked_records("DATASETS.TEST or --dataset", name)
        names = MetadataCatalog.get(name).get("thing_classes")
        known.update({os.path.realpath(record["file_name"]): (record, names) for record in records})
    return known


def _truth_panel(record: dict[str, Any], names: Sequence[str] | None) -> Panel:
    objects = record.get("annotations", ())
    boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in objects]
    named = [_name(names, item["category_id"]) for item in objects]
    labels = [f"{name} (crowd)" if item.get("iscrowd") else name for name, item in zip(named, objects, strict=True)]
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Panel("ground truth", corners, labels, [_colour(name) for name in named])


def _name(names: Sequence[str] | None, index: int) -> str:
    return str(index) if names is None or index >= len(names) else names[index]


def _colour(name: str) -> tuple[float, float, float]:
    """The colour of a class, the same in every panel whatever its index in the network."""
    return PALETTE[sum(name.encode()) % len(PALETTE)]


def _read(path: Path) -> np.ndarray:
    try:
        return read_image(str(path), format="BGR")
    except UNREADABLE as error:
        raise SetupError(f"--input: '{path}' cannot be read as an image ({error}). Leave it out.") from error
